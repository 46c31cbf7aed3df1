from __future__ import annotations

import os
import signal

import pytest
from ignite.engine import Events

from medvl_core.engine import StopRequested, handle_signals
from medvl_core.engine.stop import raise_if_requested
from tests.core.engine_toy import stage


@pytest.fixture(autouse=True)
def _restore_handlers():
    saved = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    handle_signals()
    for number, handler in saved.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [4, 6])
def test_signal_saves_the_step_and_the_resumed_run_is_exact(tmp_path, studies, number, step):
    whole, losses, _ = stage(tmp_path / "whole", studies)
    whole.run()
    cut, before, _ = stage(tmp_path / "cut", studies)

    def send(engine):
        if engine.state.iteration == step:
            os.kill(os.getpid(), number)

    cut.add_event_handler(Events.ITERATION_STARTED, send)
    handle_signals()
    with pytest.raises(StopRequested, match="--resume True") as stopped:
        cut.run()
    assert stopped.value.code == 75
    handle_signals()
    resumed, after, _ = stage(tmp_path / "cut", studies, resume=True)
    resumed.run()
    assert [number for number, _ in after] == list(range(step + 1, 13))
    assert sorted(set(before + after)) == losses


def test_second_signal_is_not_caught():
    handle_signals()
    os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    with pytest.raises(StopRequested, match="run the same command with --resume True"):
        raise_if_requested()


def test_nothing_happens_without_a_signal():
    handle_signals()
    raise_if_requested()
