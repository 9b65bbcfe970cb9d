/** One of several processes that take part in one run after another: a line of input is a port to meet at and a recipe. */
import { createInterface } from 'node:readline';
import { GraftError } from '../../src/base/index.ts';
import { launchEnvironment } from '../../src/distributed/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { parseRecipe, runTraining, type TrainEvent } from '../../src/train/index.ts';

await startEngine();
for await (const line of createInterface(process.stdin)) {
  const { port, recipe } = JSON.parse(line) as { port: number; recipe: unknown };
  process.env.MASTER_PORT = String(port);
  const events: TrainEvent[] = [];
  let outcome: object;
  try {
    const placement = launchEnvironment();
    const result = await runTraining({ placement, recipe: parseRecipe(recipe) }, (event) => events.push(event));
    outcome = { result, events };
  } catch (error) {
    outcome = { error: GraftError.of(error).toJSON() };
  }
  console.log(JSON.stringify(outcome));
}
