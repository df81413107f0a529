"""A run that is asked to stop: every rank after the same step, with its state saved."""

import os
import signal
from types import SimpleNamespace

import pytest
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.log import Log
from megatron_yuyuan.train import stopping as stopping_module
from megatron_yuyuan.train.loop import train
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.watch import signals as signals_module
from megatron_yuyuan.watch.signals import Signals

CONFIG = TINY.replace(save_interval=0, eval_interval=2, eval_iters=1)


class Signalling(RandomText):
    """Samples of which one sends a signal to the rank that reads it."""

    def __init__(self, sample: int, number: int):
        super().__init__()
        self.sample, self.number = sample, number

    def __getitem__(self, number: int):
        if number == self.sample:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(number)


def run_of(config, signalled=None, put_off: bool = False, held_out=None):
    """(stop, iterations after which the run saved, evaluated, evaluation still due).

    signalled, held_out: a sample of the training set, or of the validation set, and the signal that the
    rank that reads it gets.
    """
    training_set, validation_set = (
        Signalling(*at) if at else RandomText() for at in (signalled, held_out)
    )
    trainer, stopping = build_trainer(config), Stopping(config.training)
    saved, evaluated = [], []
    evaluate = trainer.evaluate

    def counted(dataset, left):
        evaluated.append(trainer.state.iteration)
        return evaluate(dataset, left)

    def save(_validation_loss):
        if signalled or held_out:
            os.kill(os.getpid(), signal.SIGTERM)  # one more signal, while the state is saved
        saved.append(trainer.state.iteration)

    saver = SimpleNamespace(save=save, poll=lambda: None)
    trainer.evaluate, trainer.state.evaluation_due = counted, put_off
    stop = train(trainer, training_set, validation_set, saver, stopping, Log(None, False))
    return stop, saved, evaluated, trainer.state.evaluation_due


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_to_one_rank_stops_all_after_the_step(ranks, number):
    config = Layout(data=2).of(CONFIG)
    stop, saved, evaluated, due = ranks.run(2, run_of, config, (8 + 5, number))
    assert (stop.kind, stop.cause, stop.rank) == ("signal", number.name, 1)  # 13: its share
    assert stop.host
    assert (saved, evaluated, due) == ([2], [], True)


def test_an_evaluation_that_was_put_off_comes_first_and_is_saved(ranks):
    """With its loss, by which a checkpoint is among the best."""
    stop, saved, evaluated, due = ranks.run(1, run_of, CONFIG, None, True)
    assert (stop, saved, evaluated, due) == (None, [0, 5], [0, 2, 4, 5], False)


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(pipeline=2)], ids=str)
@pytest.mark.parametrize(("put_off", "iteration"), [(False, 2), (True, 0)], ids=["due", "put off"])
def test_a_signal_ends_an_evaluation_between_two_batches(ranks, layout, put_off, iteration):
    """Of the second of three, all ranks alike; --exit-interval, which would end it at once, does not count."""
    config = layout.of(CONFIG.replace(eval_iters=3, exit_interval=100))
    found = ranks.run(2, run_of, config, None, put_off, (8 + 5, signal.SIGTERM))
    stop, saved, evaluated, due = found
    assert (stop.kind, saved, evaluated, due) == ("signal", [iteration], [iteration], True)


def early(config) -> str:
    """What a run has been asked by a signal that came before it began."""
    signals = Signals()
    os.kill(os.getpid(), signal.SIGUSR1)
    return Stopping(config.training, signals).asked()


def test_a_signal_before_the_run_began_counts(ranks):
    assert ranks.run(1, early, CONFIG) == "SIGUSR1"


def interrupted(config, seconds: float) -> tuple[str, bool]:
    """What a run has been asked by Ctrl-C, and whether a second one, so much later, ended it."""
    signals = Signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.note_interrupts()
    signal.raise_signal(signal.SIGINT)
    now = signals_module.time.monotonic()
    signals_module.time = SimpleNamespace(monotonic=lambda: now + seconds)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return signals.asked(), True
    return signals.asked(), False


def test_ctrl_c_asks_and_a_second_one_ends_at_once(ranks):
    assert ranks.run(1, interrupted, CONFIG, 3.0) == ("SIGINT", True)


def test_the_ctrl_c_that_torchrun_sends_on_is_the_same(ranks):
    assert ranks.run(1, interrupted, CONFIG, 0.5) == ("SIGINT", False)


def background(config) -> bool:
    """Whether what a shell has told to ignore Ctrl-C still does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Signals().note_interrupts()
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_what_ignores_ctrl_c_goes_on_to(ranks):
    assert ranks.run(1, background, CONFIG)


def test_an_interval_stops_but_not_at_the_end(ranks):
    stop, saved, *_ = ranks.run(2, run_of, Layout(pipeline=2).of(CONFIG.replace(exit_interval=3)))
    assert (stop.kind, stop.cause, stop.rank, saved) == ("interval", "exit_interval=3", 0, [3])
    assert ranks.run(1, run_of, CONFIG.replace(exit_interval=5))[:2] == (None, [5])


def late_run(config):
    """A clock that runs a minute between any two looks."""
    minutes = iter(range(1000))
    stopping_module.time.monotonic = lambda: 60.0 * next(minutes)
    return run_of(config)


def test_a_duration_stops_the_run(ranks):
    config = CONFIG.replace(exit_duration_in_mins=2, eval_interval=0)
    stop, saved, *_ = ranks.run(1, late_run, config)
    assert (stop.kind, stop.cause) == ("duration", "exit_duration_in_mins=2")
    assert saved == [3]  # the first look after more than two minutes
