"""What is already in memory: state dicts, modules, live PEFT models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rankscope.errors import SourceError
from rankscope.io.names import bare_name
from rankscope.io.tensors import StateDict, TensorStore

__all__ = ["live_model_config", "store_of"]


def store_of(source: object) -> tuple[TensorStore, dict[str, Any] | None]:
    """Return the tensors of an object in memory, and its adapter's configuration if it has one.

    Parameters
    ----------
    source : mapping of tensors, torch.nn.Module, or live PEFT model
        A PEFT model is known by its ``peft_config``; PEFT itself is not imported.

    Raises
    ------
    SourceError
        If it is anything else, or a PEFT model with several adapters.
    """
    if isinstance(source, nn.Module):
        label = f"<{type(source).__name__}>"
        return StateDict(source.state_dict(), label), _live_config(source, label)
    if isinstance(source, Mapping) and all(isinstance(v, Tensor) for v in source.values()):
        return StateDict(source, "<state dict>"), None
    raise SourceError(
        "this kind of source is not understood",
        where="open_updates(source)",
        expected="a path, a state dict of tensors, or a torch module",
        got=type(source).__name__,
        fix="pass model.state_dict(), the module, or the path of a file or folder",
    )


def live_model_config(source: object) -> dict[str, Any]:
    """Return what a module says of its own model, as transformers' do; empty if nothing."""
    # PEFT calls a model without a configuration "custom".
    config = getattr(source, "config", None) if isinstance(source, nn.Module) else None
    to_dict = getattr(config, "to_dict", None)
    content = to_dict() if callable(to_dict) else config
    if not isinstance(content, Mapping) or content.get("model_type") in (None, "custom"):
        return {}
    return dict(content)


def _live_config(model: nn.Module, label: str) -> dict[str, Any] | None:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping) or not configs:
        return None
    if len(configs) > 1:
        raise SourceError(
            "the model carries several adapters",
            where=label,
            expected="one adapter",
            got=", ".join(map(str, configs)),
            fix="keep one with model.delete_adapter(name), or save the one you mean",
        )
    adapter, config = next(iter(configs.items()))
    content: dict[str, Any] = dict(config.to_dict())
    content["peft_type"] = getattr(content.get("peft_type"), "value", content.get("peft_type"))
    return content | _live_scales(model, adapter, label)


def _live_scales(model: nn.Module, adapter: str, label: str) -> dict[str, Any]:
    """Return the alphas that give each layer the scale it applies at present.

    A live layer may have been rescaled since its configuration was written.
    """
    alphas = {}
    for name, layer in model.named_modules():
        scaling, ranks = getattr(layer, "scaling", None), getattr(layer, "r", None)
        if not isinstance(scaling, Mapping) or not isinstance(ranks, Mapping):
            continue
        if getattr(layer, "merged", False):
            raise SourceError(
                "the adapter is merged into the model",
                where=f"{label}, module {name!r}",
                expected="an adapter beside its base weights",
                got="base weights that contain the update",
                fix="call model.unmerge_adapter() first",
            )
        if adapter in scaling:
            alphas[f"^{re.escape(bare_name(name))}"] = float(scaling[adapter]) * ranks[adapter]
    return {"use_rslora": False, "alpha_pattern": alphas} if alphas else {}
