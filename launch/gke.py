"""A run on GKE: a JobSet each for trainer, refresher, evaluator; see gke.md.

python launch/gke.py --name NAME --image IMAGE [--trainer TYPE:TOPOLOGY]
  [--refresher TYPE:TOPOLOGY] [--evaluator TYPE:TOPOLOGY --questions FILE]
  [--dry-run] -- VERB ARGUMENT...
"""

import argparse
import json
import math
import re
import subprocess
import sys
from typing import Any, NoReturn

# In the image; `realm` is what "$0" is in there.
_RUN = '. launch/options.sh && use_platform tpu && exec realm "$@"'
_PARTS = ('trainer', 'refresher', 'evaluator')
_SIGTERM_STATUS = 75  # of a process that SIGTERM stopped, after saving


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    print(f'error: {message}; see launch/gke.md', file=sys.stderr)
    sys.exit(2)


def _slice(text: str) -> tuple[str, str]:
  match = re.fullmatch(r'([a-z0-9-]+):([1-9]\d*(?:x[1-9]\d*){1,2})', text)
  if not match:
    raise argparse.ArgumentTypeError(
      f'{text!r}, must be TYPE:TOPOLOGY, as in tpu-v4-podslice:4x4x4'
    )
  return match[1], match[2]


def _name(text: str) -> str:
  # The name of a pod, with all that is added, is a host's: 63 characters.
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,28}[a-z0-9])?', text):
    raise argparse.ArgumentTypeError(
      f'{text!r}, must be a-z, 0-9 and -, at most 30 characters'
    )
  return text


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = _Parser(prog='gke.py', allow_abbrev=False)
  parser.add_argument('--name', type=_name, required=True)
  parser.add_argument('--image', required=True)
  for part in _PARTS:
    parser.add_argument(f'--{part}', type=_slice, metavar='TYPE:TOPOLOGY')
  parser.add_argument('--questions', metavar='FILE')
  parser.add_argument('--chips-per-host', type=int, default=4)
  parser.add_argument('--service-account', default='default')
  parser.add_argument('--spot', action='store_true')
  parser.add_argument('--restarts', type=int, default=3)
  parser.add_argument('--dry-run', action='store_true')
  parser.add_argument('realm', nargs='+', metavar='-- VERB ARGUMENT...')
  arguments = parser.parse_args(argv)
  if not (arguments.trainer or arguments.refresher or arguments.evaluator):
    parser.error('--trainer, --refresher or --evaluator: one is needed')
  if bool(arguments.evaluator) != bool(arguments.questions):
    parser.error('--evaluator and --questions: one needs the other')
  if arguments.chips_per_host < 1:
    parser.error(f'--chips-per-host: {arguments.chips_per_host}, not positive')
  for part in _PARTS:
    if where := getattr(arguments, part):
      chips, per_host = _chips(where, arguments)
      if chips % per_host:
        parser.error(
          f'--chips-per-host: {per_host}, must divide the {chips} of --{part}'
        )
  if not (_workdir(arguments.realm) or '').startswith('gs://'):
    parser.error('--workdir: must be among the arguments of realm, and gs://')
  return arguments


def _workdir(realm: list[str]) -> str | None:
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument('--workdir')
  return parser.parse_known_args(realm)[0].workdir


def manifest(arguments: argparse.Namespace) -> dict[str, Any]:
  """What is applied.

  One JobSet a part, not one of all: a JobSet restarts as a whole, and a
  trainer goes on where its refresher fails or waits for machines.
  """
  workdir = _workdir(arguments.realm)
  runs = {
    'trainer': arguments.realm,
    'refresher': ['refresh', '--workdir', workdir, '--follow'],
    'evaluator': [
      *('evaluate', '--workdir', workdir),
      *('--questions', arguments.questions),
      *('--output', f'{workdir}/evaluation'),
    ],
  }
  items = [
    _job_set(arguments, part, getattr(arguments, part), realm)
    for part, realm in runs.items()
    if getattr(arguments, part)
  ]
  return {'apiVersion': 'v1', 'kind': 'List', 'items': items}


def _job_set(
  arguments: argparse.Namespace,
  part: str,
  where: tuple[str, str],
  realm: list[str],
) -> dict[str, Any]:
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': f'{arguments.name}-{part}',
      'labels': {'realm': arguments.name},
      # All pods on one slice, and no others there.
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': (
          'cloud.google.com/gke-nodepool'
        )
      },
    },
    'spec': {
      'failurePolicy': {
        'maxRestarts': arguments.restarts,
        # No new process meets an old one.
        'restartStrategy': 'BlockingRecreate',
        'rules': [
          {
            'name': 'saved',
            'action': 'RestartJobSetAndIgnoreMaxRestarts',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {
          'name': 'slice',
          'replicas': 1,
          'template': {'spec': _job(arguments, where, realm)},
        }
      ],
    },
  }


def _chips(
  where: tuple[str, str], arguments: argparse.Namespace
) -> tuple[int, int]:
  """Of a slice, and of one of its hosts."""
  chips = math.prod(map(int, where[1].split('x')))
  return chips, min(chips, arguments.chips_per_host)


def _job(
  arguments: argparse.Namespace, where: tuple[str, str], realm: list[str]
) -> dict[str, Any]:
  accelerator, topology = where
  chips, per_host = _chips(where, arguments)
  hosts = chips // per_host
  tpus = {'google.com/tpu': per_host}
  selector = {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology,
  }
  if arguments.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  return {
    'parallelism': hosts,
    'completions': hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,  # the processes end together: so do they start
    # Stopped after saving, or its machine was taken: the rule above.
    'podFailurePolicy': {
      'rules': [
        {
          'action': 'FailJob',
          'onExitCodes': {'operator': 'In', 'values': [_SIGTERM_STATUS]},
        },
        {
          'action': 'FailJob',
          'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
        },
      ]
    },
    'template': {
      'spec': {
        'restartPolicy': 'Never',
        'serviceAccountName': arguments.service_account,
        'terminationGracePeriodSeconds': 300,  # to save
        'nodeSelector': selector,
        'containers': [
          {
            'name': 'realm',
            'image': arguments.image,
            'command': [
              *('bash', '-c', _RUN, 'realm'),
              *(*realm, '--distributed'),
            ],
            'resources': {'requests': tpus, 'limits': tpus},
          }
        ],
      }
    },
  }


def main(argv: list[str]) -> int:
  arguments = _arguments(argv)
  text = json.dumps(manifest(arguments), indent=2)
  if arguments.dry_run:
    print(text)
    return 0
  apply = ['kubectl', 'apply', '-f', '-']
  return subprocess.run(apply, input=text, text=True).returncode


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
