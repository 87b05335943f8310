"""Pages of a list while the table changes: together they are the list as it was at its revision."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.lab.apiserver.store import Compacted, Key, Store, Stored

KEYS: list[Key] = [(namespace, name) for namespace in ("a", "a-1", "b") for name in ("k", "l", "m")]
WRITES = st.lists(st.tuples(st.sampled_from(("t", "t", "other")), st.sampled_from(KEYS), st.booleans()), max_size=20)
START: Key = ("", "")


def write(store: Store, writes: list[tuple[str, Key, bool]]) -> None:
    """Each puts an object, or removes it where it is there."""
    for table, key, remove in writes:
        if remove and store.get(table, key) is not None:
            store.remove(table, key)
        elif not remove:
            store.put(table, key, {"metadata": {"namespace": key[0], "name": key[1]}})


@given(before=WRITES, between=WRITES, limit=st.integers(1, 4), namespace=st.sampled_from(("", "a", "b")))
def test_pages_are_the_list_of_their_revision(
    before: list[tuple[str, Key, bool]], between: list[tuple[str, Key, bool]], limit: int, namespace: str
) -> None:
    store = Store()
    write(store, before)
    revision = store.revision
    wanted = [
        ((one.obj["metadata"]["namespace"], one.obj["metadata"]["name"]), one) for one in store.scan("t", namespace)
    ]
    pending = iter(between)
    found: list[tuple[Key, Stored]] = []
    left = 1
    while left:
        write(store, [one for _, one in zip(range(3), pending, strict=False)])
        rows, left = store.page("t", namespace, found[-1][0] if found else START, limit, revision)
        assert len(rows) == min(limit, len(wanted) - len(found))
        found += rows
        assert left == len(wanted) - len(found)
    assert found == wanted
    write(store, list(pending))
    past = store.snapshot("t", revision)
    assert sorted(item for item in past.items() if namespace in ("", item[0][0])) == wanted


def test_a_page_of_what_is_forgotten_is_refused() -> None:
    store = Store(history_events=2)
    write(store, [("t", KEYS[0], False)])
    revision = store.revision
    write(store, [("other", key, False) for key in KEYS[:4]])
    with pytest.raises(Compacted):
        store.page("t", "", START, 1, revision)


def test_a_page_costs_itself_and_what_changed_since() -> None:
    """Not the table: its keys are not looked at."""

    class Counted(list[Key]):
        read = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            found = super().__getitem__(index)
            Counted.read += len(found) if isinstance(index, slice) else 1
            return found

    store = Store()
    for number in range(5000):
        store.put("t", ("a", f"{number:04}"), {"metadata": {"namespace": "a", "name": f"{number:04}"}})
    revision = store.revision
    write(store, [("other", KEYS[0], False), ("t", KEYS[-1], False)])
    store._tables["t"].order = Counted(store._tables["t"].order)
    rows, left = store.page("t", "", START, 10, revision)
    assert [key for key, _ in rows] == [("a", f"{number:04}") for number in range(10)]
    assert left == 4990
    assert Counted.read < 100
