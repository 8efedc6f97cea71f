"""A workdir in a bucket: what other processes publish is seen."""

import http.server
import json
import subprocess
import sys
import threading
import urllib.parse

import pytest

# In a process of its own: the server's address is read when gcsfs is imported.
# A line of what is seen for each line that comes in.
_LOOKS = """
import json, sys
from realm_jax.workdir import checkpoints, files, versions
for _ in sys.stdin:
  print(json.dumps({
    'steps': checkpoints.steps('gs://b/w'),
    'versions': versions.list_versions('gs://b/w/index'),
    'finished': (files.absolute('gs://b/w') / 'finished.json').exists(),
  }), flush=True)
"""
_OBJECTS = '/storage/v1/b/b/o'


@pytest.fixture
def bucket():
  """(objects by name, address) of a bucket `b` that can be read."""
  objects: dict[str, bytes] = {}

  def described(name):
    return {
      'kind': 'storage#object',
      'bucket': 'b',
      'name': name,
      'size': str(len(objects[name])),
      'updated': '2026-01-01T00:00:00.000Z',
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'generation': '1',
    }

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
      pass

    def do_GET(self):
      url = urllib.parse.urlparse(self.path)
      asked = dict(urllib.parse.parse_qsl(url.query))
      place = url.path.removeprefix('/download')
      name = urllib.parse.unquote(place.removeprefix(f'{_OBJECTS}/'))
      if place.rstrip('/') == _OBJECTS:
        self._answer(200, listing(asked.get('prefix', '')))
      elif name not in objects:
        self._answer(404, {'error': {'code': 404, 'message': 'none'}})
      elif url.path != place or asked.get('alt') == 'media':
        self._answer(200, objects[name])
      else:
        self._answer(200, described(name))

    def _answer(self, status, value):
      body = value if isinstance(value, bytes) else json.dumps(value).encode()
      self.send_response(status)
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      self.wfile.write(body)

  def listing(prefix):
    below = [name for name in sorted(objects) if name.startswith(prefix)]
    rests = [name[len(prefix) :] for name in below]
    folders = {rest.split('/')[0] for rest in rests if '/' in rest}
    return {
      'kind': 'storage#objects',
      'items': [
        described(name)
        for name, rest in zip(below, rests, strict=True)
        if '/' not in rest
      ],
      'prefixes': [f'{prefix}{folder}/' for folder in sorted(folders)],
    }

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield objects, f'http://127.0.0.1:{server.server_port}'
  server.shutdown()
  server.server_close()


def test_what_others_publish_in_a_bucket_is_seen(bucket, monkeypatch):
  objects, address = bucket
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', address)
  # Buckets with folders are asked about by gRPC, which is not spoken here.
  monkeypatch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  with subprocess.Popen(
    [sys.executable, '-c', _LOOKS],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as looker:

    def seen():
      looker.stdin.write('\n')
      looker.stdin.flush()
      return json.loads(looker.stdout.readline())

    def publish(step, version):
      objects[f'w/checkpoints/{step}/_CHECKPOINT_METADATA'] = b'{}'
      objects[f'w/checkpoints/{step}/commit_success.txt'] = b''
      objects[f'w/index/{version:06}/manifest.json'] = b'{}'

    publish(0, 1)
    first = seen()
    publish(500, 2)
    objects['w/finished.json'] = b'{}'
    second = seen()
    looker.stdin.close()
  assert first == {
    'steps': [0],
    'versions': [1],
    'finished': False,
  }
  assert second == {
    'steps': [0, 500],
    'versions': [1, 2],
    'finished': True,
  }
