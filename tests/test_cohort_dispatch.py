"""What is done about workers that are lost or do not start."""

from collections import deque
from pathlib import Path

import pytest

from trtseg import cohort
from trtseg.cohort.dispatch import Dispatcher
from trtseg.cohort.tasks import Done, Failed, Lost, Ready, Setup, Task
from trtseg.errors import DeviceError, InputError, OutOfMemoryError, WorkerError


class Played:
    """A crew that answers at once, as ``answers`` says for each case's name, one answer an attempt."""

    def __init__(self, size, answers, starts=()):
        self.size, self.is_shared, self.together = size, True, False
        self.answers, self.starts = answers, deque(starts)
        self.due, self.given, self.hired = {}, [], 0

    def hire(self, setup):
        self.hired += 1
        self.due[self.hired] = self.starts.popleft() if self.starts else Ready("f00", "here")
        return self.hired

    def give(self, worker, task):
        name = task.case.source.name
        others = sum(not isinstance(reply, Ready) for reply in self.due.values())
        self.given.append((name, task.attempt, others))
        self.due[worker] = self.answers.get(name, [Done({}, (), 1.0, {})] * 9)[task.attempt - 1]

    def wait(self, seconds):
        worker = next(iter(self.due))
        return [(worker, self.due.pop(worker))]


def dispatched(crew, count, retries=2):
    tasks = iter([Task(cohort.Case(Path(f"{n}"), Path()), "", Path()) for n in range(count)])
    dispatcher = Dispatcher(crew, Setup({}, None, False), retries)
    assert dispatcher.start() == "f00"
    return {task.case.source.name: reply for task, reply in dispatcher.run(count, lambda: next(tasks, None))}


def test_what_was_lost_is_done_again_at_the_end_and_alone():
    full = Failed(OutOfMemoryError("full"))
    well = Done({}, (), 1.0, {})
    crew = Played(3, {"1": [Lost("gone")] * 3, "2": [full, well], "3": [Failed(InputError("no CT"))]})
    replies = dispatched(crew, 9)
    assert sorted(replies) == [str(n) for n in range(9)]
    assert "lost 3 times: gone" in str(replies["1"].error)
    assert replies["2"] == well
    assert isinstance(replies["3"].error, InputError)
    again = [(name, others) for name, attempt, others in crew.given if attempt > 1]
    assert sorted(again) == [("1", 0), ("1", 0), ("2", 0)], "no other case is under way"
    assert crew.hired == 3 + 1, "a new worker for the first that was lost; at the end there are enough"
    assert max(others for _, _, others in crew.given) < 3


def test_workers_that_do_not_start_are_done_without():
    lost = Lost("no memory")
    assert len(dispatched(Played(2, {}, [Ready("f00", ""), lost, lost, lost]), 5)) == 5
    with pytest.raises(WorkerError, match="3 in a row could not start"):
        dispatched(Played(2, {}, [lost] * 3), 5)
    with pytest.raises(DeviceError, match="far away would give other labels"):
        dispatched(Played(2, {}, [Ready("f00", ""), Ready("f01", "far away")]), 5)


@pytest.mark.parametrize(
    ("size", "count", "starts", "hired"),
    [
        (3, 1, "+", 1),
        (3, 2, "+", 2),
        (1, 1, "--+", 3),
        (2, 5, "+---", 4),
        (3, 5, "+------", 7),
    ],
)
def test_no_more_workers_are_hired_than_there_are_cases_and_three_in_a_row_that_fail_are_enough(
    size, count, starts, hired
):
    crew = Played(size, {}, [Ready("f00", "") if sign == "+" else Lost("no memory") for sign in starts])
    assert len(dispatched(crew, count)) == count
    assert crew.hired == hired


def test_a_case_that_is_tried_again_is_alone_with_its_worker_where_others_were_lost_too():
    crew = Played(3, {name: [Lost("gone"), Done({}, (), 1.0, {})] for name in "012"})
    assert all(isinstance(reply, Done) for reply in dispatched(crew, 3).values())
    assert crew.hired == 3 + 1, "none that would only take memory beside it"
