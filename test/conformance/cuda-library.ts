import { spawnSync } from 'node:child_process';
import type { currentEngine } from '../../src/engine/index.ts';

/** Returns the torch of the peer (GRAFT_PEER), with its CUDA half, where it has the version of the engine's. */
export function peerTorch(torch: ReturnType<typeof currentEngine>['torch']): string | undefined {
  const script = `import importlib.util as u; import importlib.metadata as m; s=u.find_spec('torch'); print(m.version('torch').split('+')[0], s.submodule_search_locations[0])`;
  const peer = process.env.GRAFT_PEER && spawnSync(process.env.GRAFT_PEER, ['-c', script], { encoding: 'utf8' }).stdout;
  const [version, root] = peer ? peer.trim().split(' ') : [];
  return version && torch.version.startsWith(version) ? root : undefined;
}
