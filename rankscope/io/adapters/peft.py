"""PEFT adapters: files, raw state dicts and live models of the methods that change weights.

Keys are ``base_model.model.<module>.<parameter>``; in a state dict the adapter's name stands
behind the parameter. Without a configuration the scale is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context, Family, Reading
from rankscope.io.adapters.peft_config import Config, check_readable
from rankscope.io.adapters.peft_job import Job
from rankscope.io.adapters.peft_keys import Part, has_peft_names, scan
from rankscope.io.adapters.peft_lora import lora_sites, rank_notes
from rankscope.io.adapters.peft_methods import (
    adalora_sites,
    boft_sites,
    ia3_sites,
    loha_sites,
    lokr_sites,
    oft_sites,
    vera_sites,
)
from rankscope.io.adapters.peft_replaced import replaced_sites, token_sites
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_READERS: dict[str, Callable[[Job, Part], Iterator[Site]]] = {
    "LORA": lora_sites,
    "ADALORA": adalora_sites,
    "IA3": ia3_sites,
    "VERA": vera_sites,
    "LOHA": loha_sites,
    "LOKR": lokr_sites,
    "OFT": oft_sites,
    "BOFT": boft_sites,
}
_SCALED = {"LORA", "ADALORA", "LOHA", "LOKR"}
# The beginnings of parameters' names, the telling ones first.
_METHODS = {
    "lora_E": "ADALORA",
    "lora_": "LORA",
    "ia3_": "IA3",
    "vera_": "VERA",
    "hada_": "LOHA",
    "lokr_": "LOKR",
    "oft_": "OFT",
    "boft_": "BOFT",
}
_CONDITIONAL = "aLoRA: the update acts only after its invocation tokens"
_LOFTQ = "loftq: ΔW is relative to the quantised base"
_REPLICATED = "layer_replication: layers are counted in the replicated stack, not in the base"


def _read(context: Context) -> Reading:
    content = context.config
    config = Config(content or {}, context.store.label, content is not None, context.alpha)
    check_readable(config)
    job = Job(context, config, scan(context.store))
    method = _method(job)
    sites, read = _part_sites(job, method)
    if method == "LORA" and config.known and not config.flag("target_parameters"):
        rank_notes(job, sites)
    for name, site in replaced_sites(job):
        sites.append(site)
        read.add(name)
    _check_distinct(job, sites)
    _common_notes(job, method, sites)
    return Reading(
        format="peft" if method in ("LORA", None) else f"peft {method.lower()}",
        sites=tuple(sites),
        unread=tuple(name for name in context.store.tensors if name not in read),
        notes=tuple(job.notes),
    )


def _part_sites(job: Job, method: str | None) -> tuple[list[Site], set[str]]:
    """Return the sites of all adapted modules, and the names that they and the base took."""
    sites: list[Site] = []
    read = job.keys.read
    for part in job.keys.parts:
        if "trainable_tokens_delta" in part.tensors:
            found = list(token_sites(job, part))
            if not found:
                read -= set(part.tensors.values())
        else:
            found = list(_READERS[method or "LORA"](job, part))
        sites += found
    return sites, read


def _method(job: Job) -> str | None:
    """Return the method by the tensors; None where all there is was replaced in full.

    Raises
    ------
    AdapterError
        If the configuration says another one.
    """
    have = job.keys.parameters - {"trainable_tokens_delta"}
    told = next(
        (method for start, method in _METHODS.items() if any(p.startswith(start) for p in have)),
        None,
    )
    said = job.config.type
    empty = told is None and not job.keys.replaced and not job.keys.parameters
    if said in _READERS and (empty or told not in (said, None)):
        raise AdapterError(
            "this adapter adds more, or something else, than scale * B @ A",
            where=job.store.label,
            expected=f"the tensors of peft_type {said}",
            got=f"those of {told or 'no method that is read'}",
            fix="put the configuration that was saved with this file beside it",
        )
    return told


def _check_distinct(job: Job, sites: list[Site]) -> None:
    twice = [name for name, count in Counter(s.module for s in sites).items() if count > 1]
    if twice:
        raise AdapterError(
            "a module is updated in two ways at once",
            where=f"{job.store.label}, module {twice[0]!r}",
            expected="one update for every module",
            got=f"{len(twice)} modules with several",
            fix="merge it and compare the merged checkpoint with its base",
        )


def _common_notes(job: Job, method: str | None, sites: list[Site]) -> None:
    config = job.config
    if method in _SCALED and any(site.scale is None and site.rank for site in sites):
        job.note("no adapter_config.json: the scale is unknown, numbers are at scale 1")
    for noted, text in (
        (config.flag("alora_invocation_tokens"), _CONDITIONAL),
        (config.init == "loftq", _LOFTQ),
        (config.flag("layer_replication"), _REPLICATED),
    ):
        if noted:
            job.note(text)


FAMILY = Family("peft", has_peft_names, _read)
