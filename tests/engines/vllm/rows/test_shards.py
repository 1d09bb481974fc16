"""Where the outputs of a model's linear layers lie in fused layers, whole or in several processes."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint.engines.vllm.rows.shards import Part, Piece, pieces_of

NAMES = ["q_proj", "k_proj", "v_proj"]


@st.composite
def attentions(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Processes, heads, heads of keys, and the dims of a head of keys and of values."""
    processes = 2 ** draw(st.integers(0, 3))
    per_process = draw(st.integers(1, 4))
    kv = draw(
        st.sampled_from([count for count in (1, 2, 4, 8) if processes % count == 0])
        | st.integers(1, 3).map(lambda times: times * processes)
    )
    return (
        processes,
        per_process * processes,
        kv,
        2 * draw(st.integers(1, 4)),
        draw(st.sampled_from([2, 6])),
    )


def layout_of_vllm(
    processes: int, heads: int, kv: int, key: int, value: int, rank: int
) -> tuple[list[int], list[range]]:
    """As vLLM's QKVParallelLinear has it: the sizes of its three parts, and what each holds."""
    if processes >= kv:
        kv_here, replicas = 1, processes // kv
    else:
        kv_here, replicas = kv // processes, 1
    heads_here = heads // processes
    sizes = [heads_here * key, kv_here * key, kv_here * value]
    shards = [rank, rank // replicas, rank // replicas]
    held = [
        range(shard * size, (shard + 1) * size) for shard, size in zip(shards, sizes, strict=True)
    ]
    return sizes, held


@given(attention=attentions())
def test_queries_keys_and_values(attention: tuple[int, int, int, int, int]) -> None:
    processes, heads, kv, key, value = attention
    copies = max(1, processes // kv)
    parts = [Part(heads * key), Part(kv * key, copies), Part(kv * value, copies)]
    covered = {name: Counter[int]() for name in NAMES}
    for rank in range(processes):
        sizes, held = layout_of_vllm(*attention, rank)
        found = pieces_of("qkv_proj", NAMES, parts, rank, processes)
        assert list(found) == NAMES
        offset = 0
        for name, size, dims, part in zip(NAMES, sizes, held, parts, strict=True):
            assert found[name] == [Piece("qkv_proj", offset, dims.start, size, part.width)]
            covered[name].update(dims)
            offset += size
    for name, part in zip(NAMES, parts, strict=True):
        assert covered[name] == dict.fromkeys(range(part.width), part.copies)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    processes=st.sampled_from([1, 2, 4]),
    one_name=st.booleans(),
)
def test_merged_columns(sizes: list[int], processes: int, one_name: bool) -> None:
    """Each process has a share of every matrix, under a name of its own or one for all."""
    widths = [processes * size for size in sizes]
    names = ["fused"] if one_name else [f"part{index}" for index in range(len(sizes))]
    whole = {name: Counter[int]() for name in names}
    for rank in range(processes):
        found = pieces_of("m", names, [Part(width) for width in widths], rank, processes)
        pieces = [piece for listed in found.values() for piece in listed]
        joined = one_name and processes == 1  # one after another in both outputs
        held = [sum(sizes)] if joined else sizes
        assert [piece.offset for piece in pieces] == [sum(held[:i]) for i in range(len(held))]
        assert [piece.width for piece in pieces] == held
        for name, listed in found.items():
            for piece in listed:
                whole[name].update(range(piece.start, piece.start + piece.width))
                assert piece.whole == (sum(widths) if one_name else widths[names.index(name)])
    expected = [sum(widths)] if one_name else widths
    for name, width in zip(names, expected, strict=True):
        assert whole[name] == dict.fromkeys(range(width), 1)


@given(rank=st.integers(0, 3), width=st.integers(1, 9))
def test_rows_are_whole_in_every_process(rank: int, width: int) -> None:
    """A row-parallel layer's processes have all of its output, each a part of the sum."""
    found = pieces_of("down_proj", ["down_proj"], [Part(width)], 0, 1)
    assert found == {"down_proj": [Piece("down_proj", 0, 0, width, width)]}


@pytest.mark.parametrize("rank", range(4))
def test_what_a_process_computes_is_its_part(rank: int) -> None:
    """The dims of a shard's product are the target's, in order."""
    heads, kv, size, processes = 4, 2, 4, 4
    q, k, v = torch.randn(heads * size, 8), torch.randn(kv * size, 8), torch.randn(kv * size, 8)
    x, copies = torch.randn(8), processes // kv
    shards = [q.chunk(processes)[rank], k.chunk(kv)[rank // copies], v.chunk(kv)[rank // copies]]
    fused = torch.cat(shards) @ x
    parts = [Part(heads * size), Part(kv * size, copies), Part(kv * size, copies)]
    for name, whole in zip(NAMES, (q @ x, k @ x, v @ x), strict=True):
        for piece in pieces_of("qkv", NAMES, parts, rank, processes)[name]:
            torch.testing.assert_close(
                fused[piece.offset : piece.offset + piece.width],
                whole[piece.start : piece.start + piece.width],
            )


@given(groups=st.integers(1, 4), each=st.integers(1, 3), processes=st.sampled_from([1, 2, 4]))
def test_groups_of_queries_keys_and_values(groups: int, each: int, processes: int) -> None:
    """One layer in transformers too, where a group's queries, its key and its value are together."""
    groups *= processes
    head = 2
    order = [("q", number) for number in range(groups * each)]
    order += [(kind, number) for kind in "kv" for number in range(groups)]
    theirs = [
        place
        for group in range(groups)
        for place in (
            *(("q", group * each + number) for number in range(each)),
            ("k", group),
            ("v", group),
        )
    ]
    parts = [Part(groups * each * head), Part(groups * head), Part(groups * head)]
    for rank in range(processes):
        pieces = pieces_of("qkv", ["qkv"], parts, rank, processes, groups)["qkv"]
        held: dict[int, int] = {}
        for piece in pieces:
            for dim in range(piece.width):
                held[piece.offset + dim] = piece.start + dim
        ours = [
            (kind, number)
            for kind, number in order
            if number // (groups // processes * (each if kind == "q" else 1)) == rank
        ]
        assert sorted(held) == list(range(len(ours) * head))
        for place, (kind, number) in enumerate(ours):
            start = theirs.index((kind, number)) * head
            assert [held[place * head + dim] for dim in range(head)] == [start, start + 1]
