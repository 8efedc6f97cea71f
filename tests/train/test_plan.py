"""`realm plan`: its arithmetic, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import pytest
import small_runs

from realm_jax import cli
from realm_jax.config import MeshConfig
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.collectives import bytes_sent
from realm_jax.train.hardware import parse_topology

PAPER = 'experiments/pretrain_wiki.py'


def plan(capsys, *flags, config=PAPER):
  status = cli.main(['plan', '--config', config, *flags])
  out, err = capsys.readouterr()
  return status, json.loads(out) if status == 0 else err


def test_the_papers_setup(capsys):
  status, found = plan(
    capsys, '--topology=v4:4x4x4', '--refresh-topology=v4:2x2x4'
  )
  assert status == 0
  assert (found['chips'], found['devices']) == (64, 128)
  assert found['compiled'] is False and found['fits'] is True
  # By hand: 13,353,718 rows of 128 bfloat16, over 128 devices; their tokens.
  assert found['index_version_bytes'] == 13_353_718 * 128 * 2
  rows = -(-13_353_718 // 128)
  assert found['second_index_buffer_bytes_per_device'] == rows * 256
  assert found['token_table_bytes_per_device'] == rows * 288 * 2
  # By hand: a refresh by 16 is about 1,800 steps of 64.
  assert found['staleness_steps_estimate'] == pytest.approx(1_900, rel=0.15)
  assert found['flops_per_step'] == pytest.approx(1.5e15, rel=0.1)
  parts = [
    *('parameters', 'optimizer', 'activations', 'index'),
    *('second_index_buffer', 'token_table'),
  ]
  total = sum(found[f'{part}_bytes_per_device'] for part in parts)
  assert found['hbm_bytes_per_device'] == total
  by_kind = found['collective_bytes_per_step_by_kind']
  assert found['collective_bytes_per_step'] == sum(by_kind.values())


def test_more_devices_hold_less_each_and_gpus_are_estimated(capsys):
  _, small = plan(capsys, '--topology=gpu:h100:8')
  _, large = plan(capsys, '--topology=gpu:h100:64')
  # Parameters are split over 32 devices at most.
  for part, ratio in (
    ('parameters', 4),
    ('optimizer', 4),
    ('index', 8),
    ('token_table', 8),
  ):
    name = f'{part}_bytes_per_device'
    assert small[name] / large[name] == pytest.approx(ratio, rel=0.1)
  assert small['refresh_seconds_estimate'] == pytest.approx(
    8 * large['refresh_seconds_estimate']
  )


def test_where_the_index_is_renewed(capsys):
  flags = ['--topology=gpu:h100:64', '--config.num_steps=200_000']
  found = {
    where: plan(capsys, *flags, f'--config.refresh.where={where}')[1]
    for where in ('separate', 'in_process', 'rolling', 'none')
  }
  chips, seconds, age, copies = (
    {where: found[where][name] for where in found}
    for name in (
      'refresh_chips',
      'refresh_seconds_estimate',
      'staleness_steps_estimate',
      'second_index_buffer_bytes_per_device',
    )
  )
  assert list(chips.values()) == [16, 64, 64, 0]
  assert seconds['separate'] == pytest.approx(4 * seconds['in_process'])
  rows = -(-13_353_718 // 64)
  assert list(copies.values()) == [rows * 256, rows * 256, 0, 0]
  # By hand: 13,353,718 rows, 128 a step.
  assert (age['in_process'], age['rolling'], age['none']) == (
    500,
    104_327,
    200_000,
  )
  assert seconds['rolling'] == pytest.approx(
    104_326 * found['rolling']['step_seconds_estimate']
  )
  assert seconds['none'] is None
  # 128 of the 512 x (7 x 288 + 8 x 350) wordpieces more, forward alone.
  more = found['rolling']['flops_per_step'] / found['none']['flops_per_step']
  assert more == pytest.approx(1 + 128 * 288 / (512 * 4_816 * 3), rel=2e-3)


def test_how_old_a_version_made_in_process_gets(capsys):
  flags = ['--topology=gpu:h100:64', '--config.refresh.where=in_process']
  flags += ['--config.num_steps=3_000', '--config.refresh.policy']

  def age(policy, *more):
    _, found = plan(capsys, *flags, policy, *more)
    return found['staleness_steps_estimate']

  schedule = '--config.refresh.schedule=0:100,1000:300,2000:0'
  assert age('schedule', schedule) == 1_100  # from step 1,900 on
  delay = '--config.refresh.delay_steps=70'
  assert age('simulate_delay', delay) == 570
  assert age('simulate_delay', '--config.refresh.delay_steps=2_900') == 3_000


def test_a_large_vocabulary_takes_larger_token_ids(capsys):
  flags = ['--topology=gpu:h100:64', '--config.model.vocab_size']
  small, large = (
    plan(capsys, *flags, str(size))[1]['token_table_bytes_per_device']
    for size in (65_536, 65_537)
  )
  assert large == 2 * small


def test_a_corpus_that_is_there_gives_its_size(capsys, tmp_path):
  corpus = small_runs.make_corpus(tmp_path)
  config = small_runs.write_experiment(tmp_path / 'x.py', corpus)
  _, found = plan(capsys, '--topology=gpu:h100:4', config=config)
  assert found['blocks'] == 30
  assert found['block_length'] == small_runs.BLOCK_LENGTH
  _, found = plan(
    capsys, '--topology=gpu:h100:4', '--blocks=100', config=config
  )
  assert found['blocks'] == 100


@pytest.mark.parametrize(
  'flags, error',
  [
    (['--topology=v9:2x2'], '--topology v9:2x2: no such accelerator'),
    (['--topology=v4'], '--topology v4: expected v4:4x4x4'),
    (['--topology=gpu:h100:2x2'], '--topology gpu:h100:2x2: expected'),
    (['--topology=v4:²x2x2'], '--topology v4:²x2x2: expected v4:4x4x4'),
    (
      ['--topology=v4:2x2x2', '--blocks=3', '--config.num_candidates=5'],
      'config.num_candidates: 5 (null included), but there are 3 blocks',
    ),
    (['--topology=v4:2x2x2', '--blocks=0'], '--blocks 0: must be at least 1'),
    (
      ['--topology=v4:2x2x2', '--efficiency=1.5'],
      '--efficiency 1.5: must be above 0',
    ),
    (
      ['--topology=v4:2x2x2', '--refresh-topology=x'],
      '--refresh-topology x: no such',
    ),
    (
      ['--topology=v4:2x2x2', '--config.mesh.model=3'],
      'mesh.data -1 x mesh.model 3 does not match the 16 devices',
    ),
    (
      ['--topology=v4:2x2x2', '--config.batch_size=8'],
      'batch_size: 8 is not a multiple of mesh.data 16',
    ),
    (
      [
        '--topology=v4:2x2x4',
        '--refresh-topology=v4:2x2x1',
        '--config.refresh.where=rolling',
      ],
      '--refresh-topology v4:2x2x1: config.refresh.where is rolling, there is',
    ),
    (['--topology=gpu:h100:8', '--compile'], '--topology gpu:h100:8: only'),
  ],
)
def test_refuses(capsys, flags, error):
  status, said = plan(capsys, *flags)
  assert status == 2
  [line] = [line for line in said.splitlines() if line.startswith('error')]
  assert line.startswith(f'error: {error}')


def test_topologies():
  two = parse_topology('v5e:16x16:2')
  assert (two.chips, two.devices, two.slices) == (512, 512, 2)
  assert parse_topology('gpu:h200:8').device_memory == 141 * 2**30
  assert parse_topology('v4:2x2x2').device_memory == 16 * 2**30


@pytest.mark.parametrize('shape', [(8, 1), (2, 4)])
def test_collectives_count_as_often_as_their_loop_turns(shape):
  mesh = mesh_lib.make_mesh(MeshConfig(*shape))
  data = shape[0]

  def shard(x_bD):
    def turn(x_bD, _):
      whole_BD = jax.lax.all_gather(x_bD, 'data', axis=0, tiled=True)
      return jnp.tanh(x_bD + whole_BD.sum()), None

    return jax.lax.scan(turn, x_bD, None, length=7)[0]

  run = jax.shard_map(
    shard, in_specs=mesh_lib.BATCH, out_specs=mesh_lib.BATCH, check_vma=False
  )
  x = jax.ShapeDtypeStruct((16, 64), jnp.float32)
  with jax.set_mesh(mesh):
    text = jax.jit(run).lower(x).compile().as_text()
  assert bytes_sent(text) == {
    'all-gather': 7 * 16 * 64 * 4 * (data - 1) // data
  }


def test_collectives_by_hand():
  text = """HloModule test
%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(10)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[64]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %sum = s32[]{:T(128)S(6)} add(%i, %two)
  %next = s32[]{:T(128)} copy(%sum)
  %h = (bf16[5,2]{1,0:T(8)}, u32[], token[]) send(%g, %a), is_host_transfer=true
  ROOT %t = (s32[], f32[8]{0:T(256)}) tuple(%next, /*index=1*/%x)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
  %r = bf16[10]{0} all-reduce(%y), replica_groups={{0,1},{2,3}}, to_apply=%add
  %s = f32[2]{0} reduce-scatter(%y), replica_groups=mesh['a'=4,'b'=2] {'a'}
  %q = f32[8] all-gather(%y), replica_groups=mesh['a'=2], device_ids=([2]) {'a'}
  %p = f32[3]{0} collective-permute(%y), source_target_pairs={{0,1}}
  ROOT %z = f32[8] copy(%x)
}
"""
  assert bytes_sent(text) == {
    'all-gather': 5 * 64 * 4 * 3 // 4 + 8 * 4 // 2,
    'all-reduce': 2 * 10 * 2 // 2,
    'reduce-scatter': 2 * 4 * 3,
    'collective-permute': 12,
    'send': 5 * 10 * 2,
  }
