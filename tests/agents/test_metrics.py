"""Ctrl-C while a row is logged: the row is written first, and no lock is left behind."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from textgym.agents.interruption import interruptions_held
from textgym.agents.metrics import MetricsLog

ROW = {"time/total_timesteps": 8.0, "rollout/score_mean": 0.5}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_waits_for_the_end_of_the_lines(name: str) -> None:
    class Arrived(BaseException):
        pass

    def handle(number, frame) -> None:
        raise Arrived

    number, done = getattr(signal, name), []

    def work() -> None:
        with interruptions_held():
            signal.raise_signal(number)
            done.append(name)

    before = signal.signal(number, handle)
    try:
        with pytest.raises(Arrived):
            work()
        assert done == [name]
        assert signal.getsignal(number) is handle
    finally:
        signal.signal(number, before)


def test_a_signal_without_a_handler_stays_without() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptions_held():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_holds_nothing() -> None:
    seen = []

    def work() -> None:
        with interruptions_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_a_row_is_whole_in_both_logs_when_ctrl_c_falls_into_it(tmp_path, monkeypatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    add_scalar = SummaryWriter.add_scalar

    def interrupted(self, *args, **kwargs) -> None:
        signal.raise_signal(signal.SIGINT)
        add_scalar(self, *args, **kwargs)

    monkeypatch.setattr(SummaryWriter, "add_scalar", interrupted)
    # What a shell starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), MetricsLog(tmp_path, {}, []) as log:
            log.write(ROW)
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == ROW
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(ROW)
