"""What starts the jobs of a sweep, made known to Hydra: `hydra/launcher=local`, the default, and `slurm`.

Hydra takes no plugin whose name does not say that it is of the package `hydra_plugins`, and finds it by that name: a
module of that name is made here, as a directory of it beside ours would be in everybody's way.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from reranker.cluster.launcher import SlurmLauncher
from reranker.cluster.local import LocalLauncher

LAUNCHERS = (LocalLauncher, SlurmLauncher)
_GROUP = "hydra/launcher"
_DEFAULT = "basic"
"""What Hydra chooses where nothing else is chosen."""


@contextmanager
def launchers() -> Iterator[None]:
    """Both are known, and the local one is what Hydra chooses by itself, for the length of the block.

    An `override` of it in conf/train.yaml would win over one in a user's own yaml.
    """
    register()
    store = ConfigStore.instance()
    before = store.load(f"{_GROUP}/{_DEFAULT}.yaml")
    local = {"_target_": f"{LocalLauncher.__module__}.{LocalLauncher.__name__}"}
    store.store(_DEFAULT, local, group=_GROUP)
    try:
        yield
    finally:
        store.store(_DEFAULT, before.node, group=_GROUP, provider=before.provider)


def register() -> None:
    """Make both known, once."""
    plugins = Plugins.instance()  # which has looked through those of others by then
    package, module = "hydra_plugins", types.ModuleType("hydra_plugins.reranker")
    if module.__name__ in sys.modules:
        return
    try:
        importlib.import_module(package)
    except ImportError:
        sys.modules[package] = types.ModuleType(package)
    for launcher in LAUNCHERS:
        launcher.__module__ = module.__name__
        setattr(module, launcher.__name__, launcher)
        plugins.register(launcher)
    sys.modules[package].reranker = sys.modules[module.__name__] = module  # type: ignore[attr-defined]
