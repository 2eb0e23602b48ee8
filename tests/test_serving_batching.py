"""The batcher: nobody waits for company, nobody is forgotten, and neither a poisonous job nor a hanging model stops the others."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from labline.serving.batching import MOST_LOST, Batcher, Lanes, Pace, Waiter, attempt
from labline.serving.problems import Problem


@dataclass(eq=False)
class Job:
    size: int = 1
    text: str = ""


class Gate:
    """Work that stands still until it is opened, and remembers its batches."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, jobs: list[Job]) -> list[str]:
        self.batches.append([job.text for job in jobs])
        self.entered.set()
        assert self.open.wait(90)
        return [job.text.upper() for job in jobs]

    async def reached(self) -> None:
        """Wait until the work was begun."""
        while not self.entered.is_set():
            await asyncio.sleep(0.001)


@pytest.fixture
def gate() -> Iterator[Gate]:
    work = Gate()
    yield work
    work.open.set()


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(test(), 120))


def start(batcher: Batcher, *jobs: Job) -> "list[asyncio.Task[Any]]":
    return [asyncio.ensure_future(batcher.submit(job)) for job in jobs]


def workers() -> set[threading.Thread]:
    """The threads of all batchers."""
    return {thread for thread in threading.enumerate() if thread.name == "labline-batcher"}


async def results(tasks: "list[asyncio.Task[Any]]") -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def upper(jobs: list[Job]) -> list[str]:
    return [job.text.upper() for job in jobs]


def test_each_job_gets_its_own_result() -> None:
    """A thousand of them, in whatever batches."""

    async def ask() -> list[Any]:
        batcher = Batcher(upper)
        answers = await results(start(batcher, *(Job(text=f"job {number}") for number in range(1000))))
        await batcher.drain()
        return answers

    assert run(ask) == [f"JOB {number}" for number in range(1000)]


def test_an_idle_thread_begins_at_once_and_the_rest_gathers(gate: Gate) -> None:
    async def ask() -> None:
        batcher = Batcher(gate)
        tasks = start(batcher, Job(text="a"))
        await gate.reached()
        tasks += start(batcher, *(Job(text=letter) for letter in "bcdef"))
        await asyncio.sleep(0)
        assert batcher.waiting_rows == 5
        gate.open.set()
        assert await results(tasks) == list("ABCDEF")
        await batcher.drain()

    run(ask)
    assert gate.batches == [["a"], list("bcdef")]


def test_a_batch_is_bounded_in_rows_and_a_larger_job_stands_alone(gate: Gate) -> None:
    async def ask() -> None:
        batcher = Batcher(gate, most_rows=160)
        tasks = start(batcher, Job(text="first"))
        await gate.reached()
        tasks += start(batcher, Job(70, "A"), Job(70, "B"), Job(70, "C"), Job(500, "D"), Job(20, "E"))
        await asyncio.sleep(0)
        gate.open.set()
        await results(tasks)
        await batcher.drain()

    run(ask)
    assert gate.batches == [["first"], ["A", "B"], ["C"], ["D"], ["E"]]


def test_a_small_job_waits_for_one_large_one_and_not_for_all(gate: Gate) -> None:
    """And the large ones go on too, however many small ones come."""

    async def ask() -> None:
        batcher = Batcher(gate, most_rows=160)
        tasks = start(batcher, Job(100, "first"))
        await gate.reached()
        tasks += start(batcher, *(Job(160, f"L{number}") for number in range(4)), *(Job(10, f"s{number}") for number in range(20)))
        await asyncio.sleep(0)
        gate.open.set()
        await results(tasks)
        await batcher.drain()

    run(ask)
    kinds = [batch[0][0] for batch in gate.batches]
    assert sorted(kinds[1:5]) == ["L", "L", "s", "s"]
    assert "".join(kinds[1:5]) in ("LsLs", "sLsL")
    assert [text for batch in gate.batches for text in batch if text.startswith("s")] == [f"s{number}" for number in range(20)]


def test_too_many_rows_are_sent_away_with_the_time_to_come_back(gate: Gate) -> None:
    async def ask() -> Problem:
        batcher = Batcher(gate, most_waiting_rows=100, seconds=25)
        tasks = start(batcher, Job(text="a"))
        await gate.reached()
        tasks += start(batcher, Job(60), Job(40))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await batcher.submit(Job(1))
        gate.open.set()
        await results(tasks)
        assert await batcher.submit(Job(text="again")) == "AGAIN"
        await batcher.drain()
        return refused.value

    problem = run(ask)
    assert problem.status == 429
    assert problem.retry_after is not None
    assert 1 <= problem.retry_after <= 25


def test_a_job_with_more_rows_than_may_wait_is_taken_when_nothing_waits() -> None:
    async def ask() -> Any:
        batcher = Batcher(upper, most_rows=10, most_waiting_rows=100)
        answer = await batcher.submit(Job(1000, "a"))
        await batcher.drain()
        return answer

    assert run(ask) == "A"


def test_the_pace_of_late_says_how_long_it_will_take() -> None:
    pace = Pace()
    for _ in range(100):
        pace.add(1000, 0.1)
    for _ in range(50):
        pace.add(1000, 1.0)
    assert pace.wait(2000) == pytest.approx(2.0, rel=0.02)


def test_whoever_waits_too_long_is_told_so(gate: Gate) -> None:
    """In the queue, while the batch before is not given up yet."""

    async def ask() -> list[Any]:
        batcher = Batcher(gate, seconds=0.15)
        tasks = start(batcher, Job(text="a"))
        await gate.reached()
        tasks += start(batcher, Job(text="b"))
        answers = await results(tasks)
        gate.open.set()
        await batcher.drain()
        return answers

    answers = run(ask)
    assert [answer.status for answer in answers] == [504, 504]
    assert "within 0.15 s" in str(answers[0])


def test_a_hanging_model_is_left_behind_and_the_next_job_answered(gate: Gate) -> None:
    def work(jobs: list[Job]) -> list[str]:
        return gate(jobs) if jobs[0].text == "hang" else upper(jobs)

    async def ask() -> tuple[list[Any], int, Any]:
        batcher = Batcher(work, seconds=0.1)
        late = await results(start(batcher, Job(text="hang"), Job(text="hang")))
        answer = await batcher.submit(Job(text="next"))
        given_up = batcher.given_up
        gate.open.set()
        await asyncio.sleep(0.05)
        assert await batcher.submit(Job(text="after the return")) == "AFTER THE RETURN"
        await batcher.drain()
        return late, given_up, answer

    late, given_up, answer = run(ask)
    assert [problem.status for problem in late] == [504, 504]
    assert (given_up, answer) == (1, "NEXT")


def test_a_model_that_always_hangs_gets_no_more_than_a_few_threads(gate: Gate) -> None:
    """Then its requests are refused at once, until a thread has returned."""

    before = workers()

    async def ask() -> int:
        batcher = Batcher(gate, seconds=0.03)
        statuses = [504]
        while statuses[-1] == 504:
            statuses += [problem.status for problem in await results(start(batcher, Job(text="a")))]
        assert len(workers() - before) <= MOST_LOST + 1
        assert batcher.given_up >= MOST_LOST
        gate.open.set()
        for _ in range(100):
            last = (await results(start(batcher, Job(text="a"))))[0]
            if last == "A":
                break
            await asyncio.sleep(0.01)
        assert last == "A"
        await batcher.drain()
        return statuses[-1]

    assert run(ask) == 503


def test_a_poisonous_job_fails_alone() -> None:
    calls: list[int] = []

    def work(jobs: list[Job]) -> list[int]:
        calls.append(len(jobs))
        return [int(job.text) for job in jobs]

    texts = [str(number) for number in range(64)]
    texts[41] = "poison"
    answers = attempt(work, [Job(text=text) for text in texts])
    assert answers[:41] + answers[42:] == [*range(41), *range(42, 64)]
    assert isinstance(answers[41], ValueError)
    assert len(calls) == 13


def test_an_exception_in_the_results_goes_to_its_job() -> None:
    async def ask() -> list[Any]:
        batcher = Batcher(lambda jobs: [KeyError(job.text) if job.text == "b" else job.text for job in jobs])
        answers = await results(start(batcher, *(Job(text=letter) for letter in "abc")))
        await batcher.drain()
        return answers

    a, b, c = run(ask)
    assert (a, c) == ("a", "c")
    assert isinstance(b, KeyError)


def test_what_concerns_all_is_not_tried_again() -> None:
    calls = []

    def work(jobs: list[Job]) -> list[str]:
        calls.append(len(jobs))
        raise Problem(503, "the prediction cannot be recorded now", retry_after=1.0)

    answers = attempt(work, [Job() for _ in range(64)])
    assert [answer.status for answer in answers] == [503] * 64
    assert calls == [64]


@pytest.mark.parametrize("problem", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=lambda problem: type(problem).__name__)
def test_nothing_that_work_raises_ends_the_thread(problem: BaseException) -> None:
    def work(jobs: list[Job]) -> list[str]:
        if jobs[0].text == "end":
            raise problem
        return upper(jobs)

    async def ask() -> tuple[Any, Any]:
        batcher = Batcher(work)
        first = (await results(start(batcher, Job(text="end"))))[0]
        second = await batcher.submit(Job(text="next"))
        await batcher.drain()
        return first, second

    first, second = run(ask)
    assert isinstance(first, RuntimeError)
    assert type(problem).__name__ in str(first)
    assert second == "NEXT"


@pytest.mark.parametrize("given", [[], ["one", "two"], None])
def test_results_of_another_number_fail(given: Any) -> None:
    (answer,) = attempt(lambda jobs: given, [Job()])
    assert isinstance(answer, RuntimeError | TypeError)


def test_stop_iteration_reaches_the_waiter_as_an_error() -> None:
    async def ask() -> Any:
        batcher = Batcher(lambda jobs: [StopIteration() for _ in jobs])
        answer = (await results(start(batcher, Job())))[0]
        await batcher.drain()
        return answer

    assert isinstance(run(ask), RuntimeError)


def test_a_job_whose_waiter_has_gone_is_dropped(gate: Gate) -> None:
    async def ask() -> None:
        batcher = Batcher(gate)
        tasks = start(batcher, Job(text="a"))
        await gate.reached()
        gone = start(batcher, Job(5, "gone"), Job(5, "gone too"))
        tasks += start(batcher, Job(text="b"))
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert await results(tasks) == ["A", "B"]
        assert batcher.waiting_rows == 0
        await batcher.drain()

    run(ask)
    assert gate.batches == [["a"], ["b"]]


def test_a_waiter_that_goes_during_the_work_harms_nobody(gate: Gate) -> None:
    async def ask() -> list[Any]:
        batcher = Batcher(gate)
        tasks = start(batcher, Job(text="a"), Job(text="b"))
        await gate.reached()
        tasks[0].cancel()
        gate.open.set()
        answers = await results(tasks)
        await batcher.drain()
        return answers

    answers = run(ask)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1] == "B"


def test_drain_answers_all_that_wait_and_takes_no_more(gate: Gate) -> None:
    async def ask() -> list[Any]:
        batcher = Batcher(gate, most_rows=4)
        tasks = start(batcher, *(Job(text=letter) for letter in "abcdefghij"))
        await gate.reached()
        draining = [asyncio.ensure_future(batcher.drain()) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Problem, match="ending") as refused:
            await batcher.submit(Job())
        assert refused.value.status == 503
        assert not any(one.done() for one in draining)
        gate.open.set()
        await asyncio.gather(*draining)
        assert all(task.done() for task in tasks)
        return await results(tasks)

    assert run(ask) == list("ABCDEFGHIJ")


def test_drain_does_not_wait_for_a_model_that_hangs(gate: Gate) -> None:
    async def ask() -> list[Any]:
        batcher = Batcher(gate, seconds=0.1)
        tasks = start(batcher, Job(text="a"))
        await gate.reached()
        await batcher.drain()
        return await results(tasks)

    assert run(ask)[0].status == 504


def test_the_loop_may_end_while_the_work_goes_on(gate: Gate) -> None:
    """The thread ends, without a word on the error stream (warnings of threads are errors here)."""

    async def leave() -> None:
        batcher = Batcher(gate)
        start(batcher, Job(text="a"))
        await gate.reached()

    before = workers()
    run(leave)
    gate.open.set()
    for thread in workers() - before:
        thread.join(60)
        assert not thread.is_alive()


def test_a_batch_that_cannot_be_counted_is_answered() -> None:
    def observe(jobs: int, rows: int) -> None:
        raise ValueError("no such metric")

    async def ask() -> Any:
        batcher = Batcher(upper, observe=observe)
        answer = await batcher.submit(Job(text="a"))
        await batcher.drain()
        return answer

    assert run(ask) == "A"


def test_each_batch_is_counted_once_with_its_rows() -> None:
    counted = []

    async def ask() -> None:
        batcher = Batcher(lambda jobs: [1 / job.size for job in jobs], observe=lambda jobs, rows: counted.append((jobs, rows)))
        await results(start(batcher, *(Job(size) for size in (3, 0, 5))))
        await batcher.drain()

    run(ask)
    assert sum(jobs for jobs, _ in counted) == 3
    assert sum(rows for _, rows in counted) == 8


def test_nothing_of_a_request_stays_behind() -> None:
    """Neither of one that is answered nor of one that fails, and without the garbage collector."""

    async def ask() -> list[bool]:
        batcher = Batcher(lambda jobs: [1 / (job.size - 1) for job in jobs])
        left = []
        gc.disable()
        try:
            for size in (1, 2, 3):
                job = Job(size)
                left.append(weakref.ref(job))
                try:
                    await batcher.submit(job)
                except ZeroDivisionError:
                    assert size == 1
                del job
                await asyncio.sleep(0.02)
        finally:
            gc.enable()
        await batcher.drain()
        return [reference() is None for reference in left]

    assert run(ask) == [True, True, True]


def test_under_load_every_job_is_answered_once() -> None:
    """Jobs of all sizes, waiters that vanish, and failures now and then."""
    draw, worked = random.Random(3), []

    def work(jobs: list[Job]) -> list[str]:
        worked.extend(job.text for job in jobs if job.text != "bad")
        if any(job.text == "bad" for job in jobs):
            del worked[len(worked) - sum(job.text != "bad" for job in jobs) :]
            raise ValueError("bad")
        return upper(jobs)

    async def client(number: int, batcher: Batcher, seen: list[Any]) -> None:
        for turn in range(60):
            text, chance = f"{number}.{turn}", draw.random()
            job = Job(draw.choice([1, 1, 1, 8, 200]), "bad" if chance < 0.02 else text)
            task = asyncio.ensure_future(batcher.submit(job))
            if 0.02 <= chance < 0.05:
                await asyncio.sleep(0)
                task.cancel()
            (answer,) = await asyncio.gather(task, return_exceptions=True)
            seen.append((job.text, answer))

    async def ask() -> tuple[list[Any], int]:
        batcher, seen = Batcher(work, most_rows=256), list[Any]()
        await asyncio.gather(*(client(number, batcher, seen) for number in range(40)))
        waiting = batcher.waiting_rows
        await batcher.drain()
        return seen, waiting

    seen, waiting = run(ask)
    assert len(seen) == 40 * 60
    assert waiting == 0
    for text, answer in seen:
        if text == "bad":
            assert isinstance(answer, ValueError | asyncio.CancelledError)
        else:
            assert answer == text.upper() or isinstance(answer, asyncio.CancelledError)
    assert len(worked) == len(set(worked))


def test_two_batchers_do_not_disturb_each_other(gate: Gate) -> None:
    """One for each model; one that stands still holds up no other."""

    async def ask() -> Any:
        still, other = Batcher(gate), Batcher(upper)
        tasks = start(still, Job(text="a"))
        await gate.reached()
        answer = await other.submit(Job(text="b"))
        gate.open.set()
        await results(tasks)
        await asyncio.gather(still.drain(), other.drain())
        return answer

    assert run(ask) == "B"


def test_lanes_know_who_is_late_and_when_the_next_one_will_be() -> None:
    loop = asyncio.new_event_loop()
    lanes = Lanes(most_rows=160)
    for place, size in enumerate((1, 100, 1, 100)):
        lanes.put(Waiter(place, size, loop.create_future(), float(place)))
    late, following = lanes.late(1.5)
    assert sorted(waiter.job for waiter in late) == [0, 1]
    assert following == 2.0
    assert lanes.rows == 202
    assert lanes.late(9.0)[1] is None
    loop.close()


def test_the_clock_of_the_day_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day back or forth changes nobody's time."""
    moments = iter([0.0, 86_400.0, -86_400.0] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(moments))

    async def ask() -> list[Any]:
        batcher = Batcher(upper, seconds=5)
        answers = [await batcher.submit(Job(text=letter)) for letter in "abc"]
        await batcher.drain()
        return answers

    assert run(ask) == ["A", "B", "C"]
