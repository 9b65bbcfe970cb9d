/**
 * Bytes that this process can still take: what the system calls available (free and cache that can go), within the limit
 * of the container that it runs in.
 */
export const freeMemory = (): number => process.availableMemory();
