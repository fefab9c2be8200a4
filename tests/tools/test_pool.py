"""Passes that several threads share give each its own readings, cost and errors."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lamplighter.store.records import Refused
from lamplighter.tools.adapters import gap
from lamplighter.tools.pool import Pool, _Asked, _cost
from lamplighter.tools.reader import Reader
from lamplighter.tools.tries import Joint, Trie
from lamplighter.tools.units import UnitId

CLOSE = 1e-5    # norms compute in float32 even inside a float64 model


def texts(subject: Any, number: int) -> list[list[int]]:
    """Rows of one investigation: a text of its own length, and some of its swaps."""
    ids = subject.encode("It was built in the late 19th century, and left.")[: 5 + 2 * number]
    return [[*ids[:at], 40 + number, *ids[at + 1 :]] for at in range(1, len(ids))]


def all_at_once(subject: Any, work: list[Callable[[], Any]]) -> list[Any]:
    """What each thread returns; none begins its pass before all of them wait for one."""
    found: list[Any] = [None] * len(work)

    def run(number: int) -> None:
        try:
            found[number] = work[number]()
        except Refused as refusal:
            found[number] = refusal

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    pool = subject._pool
    pool._passing = True
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(pool._waiting) < len(work) and time.monotonic() < until:
        time.sleep(0.001)
    with pool._guard:
        pool._passing = False
        pool._guard.notify_all()
    for thread in threads:
        thread.join()
    return found


def test_units_of_several_layers_and_texts_share_a_pass_and_read_as_alone(tiny: Any) -> None:
    units = [UnitId("t", ("0-mlp", "1-mlp", "1-resid")[n % 3], n) for n in range(6)]
    alone = [torch.cat([tiny.readings([row], unit) for row in texts(tiny, n)]) for n, unit in enumerate(units)]
    passes = tiny._pool.passes
    readers = [Reader(tiny, [unit.site]) for unit in units]
    found = all_at_once(tiny, [
        lambda n=n, unit=unit: readers[n](texts(tiny, n), unit) for n, unit in enumerate(units)
    ])  # fmt: skip
    assert all(gap(got, own) < CLOSE for got, own in zip(found, alone, strict=True))
    assert tiny._pool.passes - passes < len(units), "nothing was shared"
    again = [reader(texts(tiny, n), units[n]) for n, reader in enumerate(readers)]
    assert all(gap(got, own) < CLOSE for got, own in zip(again, alone, strict=True)), "the tries were left damaged"


def test_what_is_kept_after_a_shared_pass_serves_later_ones(tiny: Any) -> None:
    """A trie that shared a pass with a deeper one goes on by itself, and beside others again."""
    shallow, deep = UnitId("t", "0-mlp", 3), UnitId("t", "1-resid", 5)
    readers = Reader(tiny, [shallow.site]), Reader(tiny, [deep.site])
    for step in range(1, 5):
        rows = texts(tiny, step), texts(tiny, 5 - step)
        both = all_at_once(tiny, [lambda: readers[0](rows[0], shallow), lambda: readers[1](rows[1], deep)])  # noqa: B023
        for got, some, unit in zip(both, rows, (shallow, deep), strict=True):
            assert gap(got, torch.cat([tiny.readings([row], unit) for row in some])) < CLOSE
        own = [*rows[0][0][:-1], 77]
        assert gap(readers[0]([own], shallow), tiny.readings([own], shallow)) < CLOSE


def test_the_naive_pass_that_lets_texts_see_each_other_is_wrong(llama: Any) -> None:
    """Nodes of two texts in one trie's mask without their ancestors' bounds: what the joint mask keeps apart."""
    first, second = Trie(64), Trie(64)
    rows = texts(llama, 3)[0], texts(llama, 4)[1]
    for trie, row in zip((first, second), rows, strict=True):
        trie.add(row)
    unit = UnitId("t", "1-mlp", 3)
    found = llama.run_nodes([first.portion(), second.portion()], [unit.site])
    own = llama.readings([rows[0]], unit)
    assert gap(found[0][unit.site][-1:, 3], own) < CLOSE
    naive = llama.readings([[*rows[1], *rows[0]]], unit)
    assert gap(naive, own) > 1e-3


def test_each_thread_pays_for_its_own_rows(llama: Any) -> None:
    unit = UnitId("t", "1-mlp", 3)

    def cost(number: int) -> tuple[float, float]:
        with llama.metered() as spent:
            Reader(llama, [unit.site])(texts(llama, number), unit)
        return spent["forward_rows"], spent["forward_tokens"]

    alone = [cost(n) for n in (2, 3)]
    before = llama.meter.tokens
    shared = all_at_once(llama, [lambda n=n: cost(n) for n in (2, 3)])
    assert [rows for rows, _ in shared] == [rows for rows, _ in alone]
    assert [tokens for _, tokens in shared] == [tokens for _, tokens in alone]
    assert llama.meter.tokens == before, "another thread's tokens are charged here"


def test_an_error_is_told_to_the_thread_whose_it_is(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, passed = UnitId("t", "1-mlp", 3), llama.run_nodes

    def failing(portions: Any, read: Any) -> Any:
        if any(88 in portion.trie.ids for portion in portions):
            raise Refused("88 is not for us")
        return passed(portions, read)

    monkeypatch.setattr(llama, "run_nodes", failing)
    row = texts(llama, 3)[0]
    good, bad = all_at_once(llama, [
        lambda: Reader(llama, [unit.site])([row], unit),
        lambda: Reader(llama, [unit.site])([[*row[:-1], 88]], unit),
    ])  # fmt: skip
    assert gap(good, llama.readings([row], unit)) < CLOSE
    assert isinstance(bad, Refused) and llama._pool._waiting == []


def test_what_would_cost_much_more_together_stays_apart(llama: Any) -> None:
    """A long text that is read in the first layer would be taken through eight for the sake of a short one."""
    pool, made = Pool(llama), []
    for size, site in ((4, "7-mlp"), (5, "7-mlp"), (6, "6-mlp"), (60, "0-mlp")):
        trie = Trie(64)
        trie.add(list(range(size)))
        made.append(_Asked(trie.portion(), [site]))
    pool._waiting = list(made)
    group = pool._beside(made[0])
    assert [one.portion.size for one in group] == [4, 5, 6] and pool._waiting == [made[3]]
    assert _cost(group) == (4 + 5 + 6) * 8


def test_a_shared_pass_is_no_longer_than_one_may_be(llama: Any) -> None:
    pool, made = Pool(llama), []
    for _ in range(4):
        trie = Trie(400)
        trie.add(list(range(400)))
        made.append(_Asked(trie.portion(), ["1-mlp"]))
    pool._waiting = list(made)
    assert len(pool._beside(made[0])) == 2


def test_only_what_new_nodes_see_is_attended_to(llama: Any) -> None:
    """Keys of branches that nobody sees any more stay out of the pass."""
    trie = Trie(64)
    for row in ([0, 1, 2, 3], [0, 4, 5, 6]):
        trie.add(row)
    llama.run_nodes([trie.portion()], ["1-mlp"])
    trie.add([0, 1, 9])
    joint = Joint([trie.portion()], llama.device, llama.dtype)
    assert joint.inputs["attention_mask"].shape == (1, 1, 1, 3)      # the sink, 1, and the new node itself


def test_many_threads_for_a_while(llama: Any) -> None:
    """Eight threads with readers of their own, in no order; every reading is right and nobody is left waiting."""
    units = [UnitId("t", ("0-mlp", "1-mlp")[n % 2], n) for n in range(8)]
    alone = [torch.cat([llama.readings([row], u) for row in texts(llama, n % 5)]) for n, u in enumerate(units)]
    worst: list[float] = []

    def work(number: int) -> None:
        for _ in range(5):
            reader = Reader(llama, [units[number].site])
            for _ in range(3):
                worst.append(gap(reader(texts(llama, number % 5), units[number]), alone[number]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(worst) == 8 * 15 and max(worst) < CLOSE and llama._pool._waiting == []


def test_whoever_is_answered_goes_on_while_others_pass(llama: Any) -> None:
    """A thread that asks again and again does not keep those whose nodes it passed from their answers."""
    done: list[int] = []
    stop = threading.Event()

    def greedy() -> None:
        while not stop.is_set():
            Reader(llama, ["1-mlp"])(texts(llama, 2), UnitId("t", "1-mlp", 1))

    def modest(number: int) -> None:
        Reader(llama, ["1-mlp"])(texts(llama, 3), UnitId("t", "1-mlp", number))
        done.append(number)

    first = threading.Thread(target=greedy)
    others = [threading.Thread(target=modest, args=(n,)) for n in range(3)]
    first.start()
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(20)
    assert sorted(done) == [0, 1, 2] and first.is_alive()
    stop.set()
    first.join()
