/**
 * Returns how many bytes this process can still allocate: the memory that the system reports as available (free, and cache
 * that can be dropped), within the limit of its container.
 */
export const freeMemory = (): number => process.availableMemory();
