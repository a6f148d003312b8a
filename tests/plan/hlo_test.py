"""The reader of optimised programs, on short texts whose numbers are worked out by hand."""

import doctest

import jax
import jax.numpy as jnp
import pytest

from uld_jax.plan import hlo


def test_doctests():
    result = doctest.testmod(hlo)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "size", "padded"),
    [
        ("f32[20,6]{1,0:T(8,128)}", 480, 24 * 128 * 4),
        ("f32[20,6]{0,1:T(8,128)}", 480, 128 * 8 * 4),  # axis 0 is the fastest
        ("bf16[4,3,160,160]{1,3,2,0:T(8,128)(2,1)}", 2 * 307200, 2 * 4 * 160 * 160 * 128),
        ("u8[20000,76800]{1,0:T(32,128)(4,1)}", 20000 * 76800, 20000 * 76800),
        ("u8[160,160,3,100]{3,2,1,0:T(8,128)(4,1)}", 160 * 160 * 300, 160 * 160 * 8 * 128),
        ("pred[16,5]{0,1:T(8,128)(4,1)}", 80, 8 * 128),
        ("s32[]{:T(128)}", 4, 4),
        ("s4[10]{0:T(1024)E(4)}", 5, 512),
        ("f32[8,128]{1,0}", 4096, 4096),
        ("pred[7]{0:T(1024)E(32)}", 28, 4096),
    ],
)
def test_bytes_with_the_padding_of_the_layout(text, size, padded):
    (found,) = hlo.arrays(text)
    assert (found.bytes, found.padded, found.main) == (size, padded, True)


def test_arrays_of_other_memories_and_tuples():
    found = hlo.arrays("(f32[2,3]{1,0:T(8,128)S(1)}, token[], bf16[<=8]{0}, /*index=3*/c64[2]{0})")
    assert [(a.dtype, a.shape, a.bytes, a.main) for a in found] == [
        ("f32", (2, 3), 24, False),
        ("bf16", (8,), 16, True),
        ("c64", (2,), 16, True),
    ]


# A loop of three turns, by its counter; a fusion that takes 4 rows of a store of 1000; one that writes 4 rows in place.
LOOP = """HloModule jit_f, is_scheduled=true

%fused.take (p0: f32[1000,128], p1: s32[4]) -> f32[4,128] {
  %p0 = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %b0 = f32[1000,1,128]{2,1,0:T(8,128)} bitcast(%p0)
  %p1 = s32[4]{0:T(128)} parameter(1)
  ROOT %g = f32[4,128]{1,0:T(8,128)} gather(%b0, %p1), offset_dims={1}
}

%fused.put (p0: f32[1000,128], p1: f32[4,128], p2: s32[]) -> f32[1000,128] {
  %p0.1 = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %p1.1 = f32[4,128]{1,0:T(8,128)} parameter(1)
  %p2.1 = s32[] parameter(2)
  ROOT %u = f32[1000,128]{1,0:T(8,128)} dynamic-update-slice(%p0.1, %p1.1, %p2.1, %p2.1)
}

%body (arg: (s32[], f32[1000,128], s32[4])) -> (s32[], f32[1000,128], s32[4]) {
  %arg = (s32[], f32[1000,128]{1,0:T(8,128)}, s32[4]{0:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %table = f32[1000,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %rows = s32[4]{0:T(128)} get-tuple-element(%arg), index=2
  %taken = f32[4,128]{1,0:T(8,128)} fusion(%table, %rows), kind=kLoop, calls=%fused.take, TAKE
  %sent = f32[4,128]{1,0:T(8,128)} all-reduce-start(%taken), channel_id=7, to_apply=%add
  %back = f32[4,128]{1,0:T(8,128)} all-reduce-done(%sent)
  %new = f32[1000,128]{1,0:T(8,128)} fusion(%table, %back, %i), kind=kLoop, calls=%fused.put, PUT
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[1000,128]{1,0:T(8,128)}, s32[4]{0:T(128)}) tuple(%next, %new, %rows)
}

%condition (arg.1: (s32[], f32[1000,128], s32[4])) -> pred[] {
  %arg.1 = (s32[], f32[1000,128]{1,0:T(8,128)}, s32[4]{0:T(128)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %end = s32[] constant(3)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main.9_spmd (state: f32[1000,128], payload: s32[4]) -> f32[128,1000] {
  %param.0 = f32[1000,128]{1,0:T(8,128)} parameter(0), sharding={replicated}, metadata={op_name="state.params[\\'w\\']"}
  %param.1 = s32[4]{0:T(128)} parameter(1), metadata={op_name="payload[\\'index\\']"}
  %zero = s32[] constant(0)
  %start = s32[] copy(%zero)
  %tuple = (s32[], f32[1000,128]{1,0:T(8,128)}, s32[4]{0:T(128)}) tuple(%start, %param.0, %param.1)
  %while = (s32[], f32[1000,128]{1,0:T(8,128)}, s32[4]{0:T(128)}) while(%tuple), condition=%condition, body=%body
  %table.1 = f32[1000,128]{1,0:T(8,128)} get-tuple-element(%while), index=1
  ROOT %turned = f32[128,1000]{1,0:T(8,128)} copy(%table.1), metadata={op_name="jit(f)/transpose"}, TURN
}
"""
for name, cycles in (("TAKE", 700), ("PUT", 300), ("TURN", 1000)):
    LOOP = LOOP.replace(name, f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}')
ROW, TABLE = 4 * 128 * 4, 1000 * 128 * 4


def test_loops_in_place_updates_and_collectives_by_hand():
    found = hlo.Module(LOOP).costs()
    padded_row, padded_index = 8 * 128 * 4, 128 * 4
    turned = 128 * 1024 * 4  # 1000 is padded to 1024
    turn = (ROW + 16 + ROW) + 2 * ROW + (ROW + 4 + ROW) + 12  # take, reduce, put with its place, add 1
    padded = (2 * padded_row + padded_index) + 2 * padded_row + (2 * padded_row + 4) + 12
    assert found.bytes == 3 * turn + 2 * TABLE + 8
    assert found.padded == 3 * padded + TABLE + turned + 8
    assert found.cycles == 3 * (700 + 300) + 1000
    assert found.collectives == [("all-reduce", "f32", (4, 128), 3, ROW)]
    assert [(copy.name, copy.share, copy.label, copy.times) for copy in found.copies] == [
        ("turned", 0.25, "jit(f)/transpose", 1)
    ]
    assert found.kernels == 3 * 4 + 2
    assert found.unestimated == 3  # the reduction, the addition and the copy of a number
    assert found.loops_unknown == 0
    assert found.arguments == {"state": TABLE, "payload": padded_index}


def test_turns_that_are_noted_or_unknown():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    found = hlo.Module(LOOP.replace("body=%body\n", f"{noted}\n")).costs()
    assert (found.cycles, found.loops_unknown) == (5 * 1000 + 1000, 0)
    found = hlo.Module(LOOP.replace("direction=LT", "direction=NE")).costs()
    assert (found.cycles, found.loops_unknown) == (1000 + 1000, 1)


BRANCHES = """HloModule jit_g

%less (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%a)
}

%more (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  %m = f32[8]{0} multiply(%b, %b)
  ROOT %e = f32[8]{0} exponential(%m)
}

%wrapped (c: f32[8]) -> f32[16] {
  %c = f32[8]{0} parameter(0)
  ROOT %gathered = f32[16]{0} all-gather(%c), channel_id=3, dimensions={0}
}

ENTRY %main (x: f32[8], k: s32[]) -> f32[8] {
  %x = f32[8]{0} parameter(0), metadata={op_name="x"}
  %k = s32[] parameter(1), metadata={op_name="k"}
  %chosen = f32[8]{0} conditional(%k, %x, %x), branch_computations={%less, %more}
  %begun = ((f32[8]{0}), f32[16]{0}) async-start(%chosen), calls=%wrapped
  %ended = f32[16]{0} async-done(%begun)
  %copied = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%chosen)
  %there = f32[8]{0:S(1)} copy-done(%copied)
  %buffer = f32[1000]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %cut = f32[2]{0} slice(%ended), slice={[0:2]}
}
"""


def test_the_heavier_branch_async_wrappers_and_other_memories():
    found = hlo.Module(BRANCHES).costs()
    branch = 3 * 32 + 2 * 32  # a square, of both operands, and an exponential
    assert found.bytes == found.padded == branch + (32 + 64) + 32 + 2 * 8  # gather, prefetch of 32, slice
    assert found.collectives == [("all-gather", "f32", (16,), 1, 64)]
    assert found.kernels == 2 + 1 + 1 + 1
    assert found.cycles is None
    assert [copy.name for copy in found.copies] == ["cut"]  # a prefetch is none


# A table that is cut into two halves before rows are taken of it, as a TPU's compiler does with wide rows.
HALVES = """HloModule jit_h

%fused.cut (p: u32[64,256]) -> (u32[64,128], u32[64,128]) {
  %p = u32[64,256]{1,0:T(8,128)} parameter(0)
  %left = u32[64,128]{1,0:T(8,128)} slice(%p), slice={[0:64], [0:128]}
  %right = u32[64,128]{1,0:T(8,128)} slice(%p), slice={[0:64], [128:256]}
  ROOT %both = (u32[64,128]{1,0:T(8,128)}, u32[64,128]{1,0:T(8,128)}) tuple(%left, %right)
}

ENTRY %main (store: u32[64,256], i: s32[2]) -> u32[2,128] {
  %store = u32[64,256]{1,0:T(8,128)} parameter(0), metadata={op_name="store[\'images\']"}
  %i = s32[2]{0:T(128)} parameter(1), metadata={op_name="i"}
  %cut = (u32[64,128]{1,0:T(8,128)}, u32[64,128]{1,0:T(8,128)}) fusion(%store), kind=kLoop, calls=%fused.cut
  %half = u32[64,128]{1,0:T(8,128)} get-tuple-element(%cut), index=0
  %near = u32[64,128]{1,0:T(8,128)S(1)} copy(%half)
  %far = u32[64,128]{1,0:T(8,128)} copy(%near)
  ROOT %rows = u32[2,128]{1,0:T(8,128)} gather(%far, %i), offset_dims={1}
}
"""


def test_a_table_that_is_cut_into_halves_is_a_copy():
    found, half = hlo.Module(HALVES).costs(), 64 * 128 * 4
    assert found.bytes == 4 * half + half + half + (2 * 1024 + 8)
    (cut,) = found.copies  # neither to nor from another memory, which is what computing needs
    assert (cut.name, cut.share) == ("cut", pytest.approx(4 * half / found.padded))
    assert found.arguments == {"store": 2 * half, "i": 512}


def test_a_program_of_this_machine_is_read_as_its_compiler_counts():
    def f(x, y):
        return jax.lax.fori_loop(0, 7, lambda i, z: jnp.sin(z @ y), x)

    x, y = jnp.ones((32, 48)), jnp.ones((48, 48))
    module = hlo.Module(jax.jit(f).lower(x, y).compile().as_text())
    products = [times for _, i, times in module.executed(module.entry) if "dot" in i.op or "dot" in i.label]
    assert max(products) == 7
    found = module.costs()
    assert found.loops_unknown == 0
    assert found.bytes >= 7 * 4 * (32 * 48 + 48 * 48)
    assert found.arguments == {"x": 4 * 32 * 48, "y": 4 * 48 * 48}
