import doctest

import jax
import jax.numpy as jnp

from tests import collectives


def test_examples():
    result = doctest.testmod(collectives)
    assert result.attempted >= 1
    assert result.failed == 0


def test_kinds_and_async_forms_are_read():
    text = """ENTRY %main (x: f32[16,4]) -> f32[128] {
  %x = f32[16,4]{1,0} parameter(0)
  %g = f32[128,4]{1,0:T(8,128)} all-gather(f32[16,4]{1,0} %x), channel_id=1, dimensions={0}
  %s = (f32[16]{0}, f32[128]{0}) all-gather-start(%y), dimensions={0}
  %p = bf16[2]{0} collective-permute(%z), source_target_pairs={{0,1}}
  %u = f32[16,4]{1,0} add(f32[16,4] %x, f32[16,4] %all-reduce.7)
  %d = f32[128]{0} all-gather-done(%s)
}"""
    found = collectives.list_collectives(text)
    assert found == [
        ("all-gather", "f32", (128,)),  # once: its start has the operand and the result, its end the result
        ("all-gather", "f32", (128, 4)),
        ("collective-permute", "bf16", (2,)),
    ]


def test_one_device_sends_nothing():
    assert collectives.list_collectives(jax.jit(lambda x: x.sum()).lower(jnp.ones(8)).compile()) == []
