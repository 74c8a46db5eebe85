"""Containers of named tensors: one file each, all read through `rankscope.io.tensors`."""
