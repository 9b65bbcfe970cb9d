import type { Model } from '../../nn/index.ts';
import type { Adapter } from './method.ts';
import { type PlacedPort, placed } from './placement.ts';

/**
 * Returns an adapter that works through a port of the model, attached and enabled.
 * @param port what it puts into the computation
 * @param fields everything else about it; getters stay getters
 * @param dispose frees its tensors when it is detached
 */
export function portAdapter(
  model: Model,
  port: PlacedPort,
  fields: Omit<Adapter, 'enabled' | 'detach' | typeof Symbol.dispose>,
  dispose: () => void,
): Adapter {
  let attached = true;
  const adapter: Adapter = Object.assign(fields, {
    enabled: true,
    detach() {
      if (!attached) return;
      attached = false;
      removePort();
      dispose();
    },
    [Symbol.dispose]: () => adapter.detach(),
  });
  const removePort = model.ports.add({
    ...port,
    get enabled() {
      return adapter.enabled;
    },
  });
  return placed(adapter, { wrappers: [], copies: [], baseChanges: [], ports: [port], withdraw: removePort });
}
