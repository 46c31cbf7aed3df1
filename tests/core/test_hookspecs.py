from __future__ import annotations

import pluggy
import pytest

from medvl_core import hookspecs
from medvl_core.manager import HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_pluggy_takes_the_hook_and_an_implementation_of_it(hook):
    class Plugin:
        pass

    setattr(Plugin, hook, staticmethod(hookspecs.hookimpl(lambda: [hook])))
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Plugin())
    manager.check_pending()
    assert getattr(manager.hook, hook)() == [[hook]]


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_says_what_it_is_for(hook):
    assert getattr(hookspecs, hook).__doc__.endswith(".")
    assert HOOKS[hook].__name__ in getattr(hookspecs, hook).__annotations__["return"]
