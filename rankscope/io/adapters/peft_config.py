"""What ``adapter_config.json`` decides: data that is checked, and never handed to PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import scale_of
from rankscope.io.adapters.name_rules import NameRule

__all__ = ["Config", "check_readable"]

_READABLE = {
    *("LORA", "ADALORA", "IA3", "VERA", "LOHA", "LOKR", "OFT", "BOFT"),
    *("LN_TUNING", "TRAINABLE_TOKENS"),
}
_NO_UPDATE = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
    *("ADAPTION_PROMPT", "XLORA", "POLY", "CPT", "CARTRIDGE"),
}
# Options of LoRA that change what is added to more, or something else, than scale * B @ A.
_REFUSED_OPTIONS = (
    *("use_qalora", "use_bdlora", "enable_lora", "arrow_config", "kasa_config"),
    "monteclora_config",
)
_PLAIN_INITS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica", "loftq")
_REBASED_INITS = ("pissa", "olora")


@dataclass(frozen=True)
class Config:
    """An adapter's configuration.

    Attributes
    ----------
    content : dict
        As it was read; empty where there is none.
    label : str
        The adapter's place, for messages.
    known : bool
        Whether there is a configuration at all.
    alpha : float or None
        From the user; overrides the configuration's.
    """

    content: Mapping[str, Any]
    label: str
    known: bool
    alpha: float | None = None
    patterns: dict[str, list[tuple[NameRule, float]]] = field(init=False)

    def __post_init__(self) -> None:
        # AdaLoRA's rank_pattern holds masks, and does not enter the scale.
        keys = ("alpha_pattern",) if self.type == "ADALORA" else ("alpha_pattern", "rank_pattern")
        object.__setattr__(self, "patterns", {key: self._pattern(key) for key in keys})

    @property
    def type(self) -> str | None:
        """The method's name in capitals, or None where nothing says it."""
        value = self.content.get("peft_type", "LORA" if self.known else None)
        return None if value is None else str(value).upper()

    @property
    def init(self) -> str:
        """``init_lora_weights`` in lower case."""
        return str(self.content.get("init_lora_weights", True)).lower()

    @property
    def rebased(self) -> bool:
        """Whether the initialisation took its product out of the base weight."""
        return self.init.startswith(_REBASED_INITS)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor ``peft_version``; (0, 0) before it was written."""
        match = re.match(r"(\d{1,4})\.(\d{1,4})", str(self.content.get("peft_version")))
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def flag(self, key: str) -> bool:
        """Return a truth value, false where it is missing."""
        return bool(self.content.get(key))

    def number(self, key: str, default: float) -> float:
        """Return a finite number, or raise an `AdapterError`."""
        return self._finite(self.content.get(key, default), key)

    def patterned(self, key: str, module: str, default: float) -> float:
        """Return what a pattern such as ``alpha_pattern`` says of a module, by PEFT's rule."""
        return next(self._said(key, module), default)

    def contested(self, module: str) -> bool:
        """Return whether several alphas are said of a module, of which the first counts."""
        return len(set(self._said("alpha_pattern", module))) > 1

    def rank(self, module: str) -> float:
        """Return the rank that the configuration gives a module."""
        return self.patterned("rank_pattern", module, self.number("r", 8))

    def scale(self, module: str, rank: int, key: str = "lora_alpha") -> float | None:
        """Return alpha/r, or alpha/√r for rsLoRA; None where nothing says it.

        `key` is alpha's name in the configuration.
        """
        if rank <= 0 or (self.alpha is None and not self.known):
            return None
        alpha = self.alpha
        if alpha is None:
            alpha = self.patterned("alpha_pattern", module, self.number(key, 8))
        return scale_of(alpha, rank, rslora=self.flag("use_rslora"))

    def names(self, key: str) -> list[str]:
        """Return a list of short strings; a single string counts as one."""
        value = self.content.get(key) or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple | set) or not all(
            isinstance(name, str) and len(name) <= 512 for name in value
        ):
            raise self.unusable(key, "a list of names", value)
        return list(value)

    def unusable(self, key: str, expected: str, got: object) -> AdapterError:
        """Return the error for a value that cannot be used."""
        return AdapterError(
            f"adapter_config.json has an unusable {key}",
            where=f"{self.label}, its adapter_config.json",
            expected=expected,
            got=repr(got)[:100],
            fix="correct the configuration, or give the scale with --alpha without it",
        )

    def _finite(self, value: object, key: str) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not -1e12 < value < 1e12  # also false for NaN
        ):
            raise self.unusable(key, "a finite number", value)
        return float(value)

    def _said(self, key: str, module: str) -> Iterator[float]:
        rules = self.patterns.get(key, ())
        return (value for rule, value in rules if rule.matches(module))

    def _pattern(self, key: str) -> list[tuple[NameRule, float]]:
        value = self.content.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.unusable(key, "an object from names to numbers", value)
        return [
            (self._rule(key, str(rule)), self._finite(number, key))
            for rule, number in value.items()
        ]

    def _rule(self, key: str, rule: str) -> NameRule:
        try:
            return NameRule(rule)
        except ValueError as error:
            raise self.unusable(key, "simple patterns of module names", str(error)) from error


def check_readable(config: Config) -> None:
    """Refuse, by name, what is no weight update or not one that is read here.

    Raises
    ------
    AdapterError
        For soft prompts and routers, which have no weight update; for methods and options
        whose ΔW is not known here.
    """
    if config.type in _NO_UPDATE:
        raise AdapterError(
            "this method has no weight update",
            where=config.label,
            expected="an adapter that changes weight matrices",
            got=f"peft_type {config.type}",
            fix="there is nothing here that rankscope could measure",
        )
    reason = _refusal(config)
    if reason:
        raise AdapterError(
            "this adapter adds more, or something else, than scale * B @ A",
            where=config.label,
            expected=f"one of {', '.join(sorted(_READABLE))}",
            got=reason[:200],
            fix="merge it and compare the merged checkpoint with its base",
        )


def _refusal(config: Config) -> str | None:
    if config.type is not None and config.type not in _READABLE:
        return f"peft_type {config.type}, which is not read"
    experts = config.flag("target_parameters")
    options = [f"the option {key}" for key in _REFUSED_OPTIONS if config.flag(key)]
    if options:
        return options[0]
    special = ("use_dora", config.flag("use_dora")), (config.init, config.rebased)
    together = [name for name, used in (*special, ("target_parameters", experts)) if used]
    if len(together) > 1:
        return " together with ".join(together)
    if config.flag("layer_replication") and (config.flag("use_dora") or config.rebased):
        return "layer_replication with a ΔW that depends on the base weight"
    if config.type == "LORA" and not config.init.startswith((*_PLAIN_INITS, *_REBASED_INITS)):
        return (
            f"init_lora_weights {config.init!r}, which moved the base by what only the data of"
            " the run tells; save with path_initial_model_for_weight_conversion"
        )
    return None
