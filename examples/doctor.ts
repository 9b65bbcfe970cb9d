/** What this machine has, and how fast the engine multiplies on it. */
import { engineStatus, processor, Session } from 'graft';

const { model, cores, features } = processor();
const names = Object.keys(features).filter((name) => features[name as keyof typeof features]);
console.log(`${model}, ${cores} cores: ${names.join(', ')}`);

await using session = new Session();
// The first job starts the engine: it fetches LibTorch and builds the addon where they are missing, and says so.
const findings = await session.run('doctor', {}, (event) => console.error(event.line));
const { torch } = engineStatus();
console.log(`LibTorch ${torch?.version} from ${torch?.origin}`);
for (const [dtype, rate] of Object.entries(findings.gemm)) console.log(`${dtype}: ${rate.toFixed(0)} GFLOP/s`);
console.log(`training computes in ${findings.precision}: ${findings.precisionReason}`);
