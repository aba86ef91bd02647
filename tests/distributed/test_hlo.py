"""Collectives are read right from every way in which HLO writes them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jroute.distributed.hlo import Collective, collectives, gathered_parameters, summary
from jroute.distributed.mesh import make_mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 2}

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%wrapped (p: f32[4,8]) -> f32[2,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %scatter = f32[2,8]{1,0} reduce-scatter(%p), replica_groups=[4,2]<=[2,2,2]T(0,2,1), to_apply=%add
}

%layer (s: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %s = (s32[], f32[4,8]{1,0}) parameter(0)
  %part = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %send = ((f32[4,8]{1,0}), f32[2,8]{1,0}) async-start(%part), calls=%wrapped
  %sent = f32[2,8]{1,0} async-done(%send), calls=%wrapped
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %part)
}

%more (s: (s32[], f32[4,8])) -> pred[] {
  %s = (s32[], f32[4,8]{1,0}) parameter(0)
  %done = pred[] all-reduce(%flag), replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}, to_apply=%add
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%step (s: (f32[4,8])) -> (f32[4,8]) {
  %s = (f32[4,8]{1,0}) parameter(0)
  %layers = (s32[], f32[4,8]{1,0}) while(%init), condition=%always, body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  %best = ((bf16[4,1]{1,0}, s32[4,1]{1,0}), (bf16[4,2]{1,0}, s32[4,2]{1,0})) all-gather-start(%a, %b), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={1}
  %best.done = (bf16[4,2]{1,0}, s32[4,2]{1,0}) all-gather-done(%best)
  ROOT %out = (f32[4,8]{1,0}) tuple(%part)
}

%always (s: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %everyone = (f32[4,8]{1,0}, /*index=1*/f32[]) all-reduce-start(%p, %q), replica_groups={}, to_apply=%add
  %nobody = f32[4,8]{1,0} all-reduce(%p), replica_groups=[8,1]<=[8], to_apply=%add
  %shift = (f8e4m3fn[16]{0}, f8e4m3fn[16]{0:S(1)}, u32[], u32[]) collective-permute-start(%r), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
  %turn = f32[4,8]{1,0} all-to-all(%p), replica_groups=mesh['x'=2,'y'=1,'z'=4] {'x','y'}, dimensions={0}
  %steps = (f32[4,8]{1,0}) while(%start), condition=%more, body=%step
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%steps), index=0
}
"""  # noqa: E501


def test_every_way_of_writing_them() -> None:
    square = ("f32", (4, 8))
    assert collectives(PROGRAM, MESH) == [
        Collective("all-reduce", (square, ("f32", ())), ("data", "fsdp", "tensor"), 0, 1),
        Collective("collective-permute", (("f8e4m3fn", (16,)),), ("data",), 0, 1),
        Collective("all-to-all", (square,), ("data",), 0, 1),
        Collective("all-reduce", (("pred", ()),), ("tensor",), 1, 1),
        Collective("reduce-scatter", (("f32", (2, 8)),), ("fsdp",), 2, 3),
        Collective("all-gather", (("bf16", (4, 2)), ("s32", (4, 2))), ("tensor",), 1, 1),
    ]
    assert summary(collectives(PROGRAM, MESH)) == {
        "all-reduce": (2, 133),
        "collective-permute": (1, 16),
        "all-to-all": (1, 128),
        "reduce-scatter": (3, 192),
        "all-gather": (1, 48),
    }


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp", "tensor")),
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("[4,2]<=[4,2]T(1,0)", ("fsdp",)),
        ("[1,8]<=[8]", ("data", "fsdp", "tensor")),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",)),
        ("mesh['a'=2,'b'=2,'c'=2], device_ids=([2,2,2]T(0,2,1)) {'b'}", ("tensor",)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("mesh['a'=4,'b'=2], device_ids=(0,2,1,3,4,6,5,7) {'b'}", ("fsdp",)),
        ("mesh['a'=8] {'a':(1)2}", ("data",)),
        ("mesh['a'=8] {'a':(4)2}", ("tensor",)),
        ("mesh['a'=8] {'a':(2)2}", ("fsdp",)),
    ],
)
def test_every_way_of_writing_groups(groups: str, axes: tuple[str, ...]) -> None:
    line = f"  ROOT %x = f32[3]{{0}} all-reduce(%y), replica_groups={groups}, to_apply=%add"
    (collective,) = collectives(f"ENTRY %main (y: f32[3]) -> f32[3] {{\n{line}\n}}", MESH)
    assert collective == Collective("all-reduce", (("f32", (3,)),), axes, 0, 1)


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("%add (x: f32[]) -> f32[] {\n}", MESH)
    text = "ENTRY %main () -> f32[] {\n  %x = f32[] all-reduce(%y), replica_groups=<new>\n}"
    with pytest.raises(ValueError, match=r"unknown notation: %x = f32\[\] all-reduce"):
        collectives(text, MESH)


def test_a_gathered_parameter_is_known_in_any_order_of_its_axes() -> None:
    mesh = make_mesh(2, 2, 2)

    def cut(shape: tuple[int, ...], *parts: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec(*parts))
        )

    params = {
        "embed_tokens": cut((96, 48), "tensor", "fsdp"),
        "norm": cut((5,), None),
        "blocks": {"q_proj": cut((3, 48, 10, 20), None, "fsdp", "tensor", None)},
    }

    def names(*shape: int) -> list[str]:
        one = Collective("all-gather", (("f32", shape),), ("tensor",), 1, 1)
        return [name for name, _ in gathered_parameters([one], params)]

    assert names(96, 48) == names(48, 96) == names(1, 4608) == ["embed_tokens"]
    assert names(96, 24) == ["embed_tokens"], "one of two cuts undone"
    for shape in [
        (3, 48, 10, 20),  # stacked
        (48, 10, 20),  # one layer
        (10, 20, 24),  # still cut over fsdp, and transposed
        (48, 200),  # heads merged
        (2, 24, 2, 5, 20),  # the parts in front
    ]:
        assert names(*shape) == ["blocks/q_proj"], shape
    for shape in [(48, 24), (24, 5, 20), (3, 24, 5, 20), (5,), (4, 48), (4, 1, 24)]:
        assert names(*shape) == [], shape
    reduced = Collective("all-reduce", (("f32", (96, 48)),), ("tensor",), 1, 1)
    assert gathered_parameters([reduced], params) == []
