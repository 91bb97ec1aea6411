"""Template code that never ends is stopped, and what is within its time is left alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from peftctl.errors import UsageError
from peftctl.text import chat, deadline
from peftctl.text.deadline import OverTimeError
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import assistant, user

TURNS = (user("q"), assistant("a"))
# Loops in loops, each as long as the sandbox lets one be: years.
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
# Calls of a macro by itself, twice each time: the depth is small, the number of calls is not.
DOUBLING = "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(90) }}"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watching thread looks so often that its looks fall into every moment of what is watched."""
    monkeypatch.setattr(deadline, "LOOKS_EVERY", 0.001)
    time.sleep(0.6)  # the look that it is waiting for


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("template", [ENDLESS, DOUBLING], ids=["loops", "macros"])
def test_a_template_that_never_ends_is_stopped_and_named(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(UsageError) as stopped:
        chat.render(TURNS, tiny.tokenizer(template), generation_prompt=False)
    assert time.monotonic() - begun < 5
    assert stopped.value.message == "the chat template takes more than 0.2 seconds to write 2 messages"
    assert stopped.value.hint == "a template of a model that you trust, or one of your own, as data.template"


def test_it_is_stopped_where_rows_are_made_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.2)
    with pytest.raises(UsageError, match="takes more than"):
        chat.segments(kinds.chat(*TURNS), tiny.tokenizer(ENDLESS))


def test_threads_that_render_at_once_are_each_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.3)
    tokenizers = [tiny.tokenizer(ENDLESS) for _ in range(4)]

    def render(index: int) -> str:
        try:
            return chat.render(TURNS, tokenizers[index], generation_prompt=False)
        except UsageError as error:
            return error.message

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(render, range(4)))
    assert said == ["the chat template takes more than 0.3 seconds to write 2 messages"] * 4


@pytest.mark.slow
@pytest.mark.every
def test_a_thread_within_its_time_is_never_hit_by_another_s(often: None) -> None:
    """One thread is stopped again and again while others work in contexts that they always leave in time."""
    over, done = threading.Event(), [0, 0]

    def within(index: int) -> None:
        while not over.is_set():
            with deadline.deadline(60):
                spin(0.003)
            done[index] += 1

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(within, index) for index in range(2)]
        for _ in range(5):
            with pytest.raises(OverTimeError), deadline.deadline(0.05):
                spin(60)
        over.set()
        for worker in workers:
            worker.result(timeout=30)  # raises what hit it
    assert min(done) > 5


@pytest.mark.slow
@pytest.mark.every
def test_a_deadline_that_is_met_leaves_nothing_behind(often: None) -> None:
    """Work that ends near its deadline is either in time or over time, and what comes after is hit by neither."""
    ends = {"in time": 0, "over time": 0}
    for turn in range(100):
        try:
            with deadline.deadline(0.004):
                spin(0.003 + turn % 10 * 0.0003)
            ends["in time"] += 1
        except OverTimeError:
            ends["over time"] += 1
        spin(0.003)  # an exception on its way would arrive here
    assert all(ends.values())


def test_an_exception_that_has_not_arrived_at_the_end_is_taken_back_and_raised_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that would arrive late is put on its way by hand: when a real one arrives is Python's to say."""
    sent: list[tuple[int, type[BaseException] | None]] = []
    monkeypatch.setattr(deadline, "_raise_in", lambda thread, error: sent.append((thread, error)))
    context = deadline.deadline(60)

    def late() -> None:
        with context:
            context.look(time.monotonic() + 61)
            context.look(time.monotonic() + 62)  # it is raised once

    with pytest.raises(OverTimeError):
        late()
    assert sent == [(threading.get_ident(), OverTimeError), (threading.get_ident(), None)]


def test_a_shorter_deadline_is_not_kept_waiting_by_a_longer_one() -> None:
    begun = threading.Event()
    end = threading.Event()

    def long() -> None:
        with deadline.deadline(60):
            begun.set()
            end.wait(30)

    other = threading.Thread(target=long)
    other.start()
    try:
        assert begun.wait(10)
        started = time.monotonic()
        with pytest.raises(OverTimeError), deadline.deadline(0.1):
            spin(20)
        assert time.monotonic() - started < 5
    finally:
        end.set()
        other.join()


def test_an_error_within_the_time_comes_through_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"), deadline.deadline(60):
        raise KeyError("mine")
    assert threading.get_ident() not in deadline._watched


def test_over_time_is_no_exception_that_code_in_between_may_swallow() -> None:
    assert not issubclass(OverTimeError, Exception)


def test_rendering_goes_on_after_one_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.2)
    with pytest.raises(UsageError):
        chat.render(TURNS, tiny.tokenizer(ENDLESS), generation_prompt=False)
    monkeypatch.setattr(chat, "MOST_SECONDS", 30.0)
    text = chat.render(TURNS, tiny.tokenizer(), generation_prompt=False)
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
