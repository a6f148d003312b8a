"""Construction of backbones by their names in a config, one or several joined by `+`."""

import dataclasses

from uld_jax.backbones import concat
from uld_jax.errors import UserError
from uld_jax.lookup import find_class


def backbone(path: str, field: str, kwargs=(), weights=()):
    """Build the frozen network `module.Class` of `uld_jax.backbones`.

    A network that needs weights has a hyper-parameter `folder`; unless given, it is `config.weights.<module>`. Several
    are joined by `+` (`backbones/concat.py`); `kwargs` then has those of each network under its module.

    Raises UserError for an unknown class or hyper-parameter; `field` is named in the error.
    """
    if "+" in path:
        return _joined(path.split("+"), field, dict(kwargs), weights)
    cls = find_class("uld_jax.backbones", path, field)
    fields, kwargs = {f.name for f in dataclasses.fields(cls)}, dict(kwargs)
    if unknown := sorted(set(kwargs) - fields):
        known = ", ".join(sorted(fields))
        raise UserError(
            f"{field}_kwargs.{unknown[0]} is no hyper-parameter of {path}; it has {known} (a config for another "
            "backbone is --config=NAME:backbone=module.Class)"
        )
    if "folder" in fields and not kwargs.get("folder"):
        kwargs["folder"] = dict(weights).get(path.partition(".")[0], "")
    return cls(**kwargs)


def _joined(paths, field: str, kwargs, weights):
    modules = [path.partition(".")[0] for path in paths]
    if len(set(modules)) < len(modules):
        raise UserError(f"{field} is {'+'.join(paths)!r}; join backbones of different modules")
    if unknown := sorted(set(kwargs) - set(modules)):
        raise UserError(f"{field}_kwargs.{unknown[0]} is none of its backbones; they are {', '.join(modules)}")
    parts = [backbone(p, field, kwargs.get(m, ()), weights) for m, p in zip(modules, paths, strict=True)]
    return concat.ConcatBackbone(tuple(zip(modules, parts, strict=True)))


def backbone_kinds(path: str, kwargs=()) -> frozenset[str]:
    """The kinds of `config.weights` that the network `module.Class`, or several joined by `+`, can load."""
    kinds, kwargs = set(), dict(kwargs)
    for part in path.split("+"):
        module, own = part.partition(".")[0], dict(kwargs.get(part.partition(".")[0], ())) if "+" in path else kwargs
        fields = {f.name for f in dataclasses.fields(find_class("uld_jax.backbones", part, "backbone"))}
        if "folder" in fields and not own.get("folder"):
            kinds.add(module)
    return frozenset(kinds)
