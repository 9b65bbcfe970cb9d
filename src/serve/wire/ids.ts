import { randomBytes } from 'node:crypto';

/** A new name for an answer or a call. */
export const newId = (prefix: string): string => `${prefix}${randomBytes(12).toString('hex')}`;

/** Now, in seconds since 1970. */
export const now = (): number => Math.floor(Date.now() / 1000);
