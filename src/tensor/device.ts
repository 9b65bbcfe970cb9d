import { freeMemory } from '../base/index.ts';
import { type Binding, currentEngine, onStart } from '../engine/index.ts';

let native: Binding | undefined;
onStart((binding) => {
  native = binding;
});

/** Where a tensor's numbers are: `cpu`, a GPU as `cuda:0`, or `meta`, whose tensors have a shape and no numbers. */
export type Device = string;

/** The device whose memory JavaScript reads and writes. */
export const host: Device = 'cpu';

/** Returns the device of new tensors of this thread: `cpu` at the start. */
export const currentDevice = (): Device => native?.useDevice() ?? host;

/** Sets the device of new tensors of this thread; disposing restores the one before. */
export function useDevice(device: Device): Disposable {
  const { native } = currentEngine();
  const before = native.useDevice(device);
  return { [Symbol.dispose]: () => void native.useDevice(before) };
}

/** Returns `body()`, whose new tensors are on `device`. */
export function onDevice<T>(device: Device, body: () => T): T {
  using _ = useDevice(device);
  return body();
}

const isGpu = (device: Device): boolean => device.startsWith('cuda');

/** Whether a copy to the device is faster from pinned memory of the host. */
export const takesPinned = isGpu;

/** Returns how many bytes of tensors the device of new tensors still has room for. */
export const freeDeviceMemory = (): number =>
  isGpu(currentDevice()) ? currentEngine().native.deviceMemory().free : freeMemory();
