/** What this machine has, and how fast the engine multiplies on it. */
import { engineStatus, processor, Session } from 'graft-llm';

const { model, cores, features } = processor();
const names = Object.entries(features).flatMap(([name, present]) => (present ? [name] : []));
console.log(`${model}, ${cores} cores: ${names.join(', ')}`);

// The first job starts the engine: it fetches LibTorch and builds the addon where they are missing, and says so.
await using session = new Session({ log: console.error });
const findings = await session.doctor();
const { torch } = engineStatus();
console.log(`LibTorch ${torch?.version} from ${torch?.origin}`);
for (const [dtype, rate] of Object.entries(findings.gemm)) console.log(`${dtype}: ${rate.toFixed(0)} GFLOP/s`);
console.log(`training computes in ${findings.precision}: ${findings.precisionReason}`);
