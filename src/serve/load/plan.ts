import { randomStream } from '../../data/index.ts';

/** A request of a load. */
export interface Arrival {
  /** Seconds after the beginning. */
  readonly at: number;
  readonly model: string;
  /** Words of its prompt, which no other request shares. */
  readonly prompt: string;
  readonly maxTokens: number;
}

/** What a load is made of. */
export interface LoadShape {
  /** Models, the most popular first. */
  readonly models: readonly string[];
  /** Requests a second, on average. */
  readonly rate: number;
  readonly seconds: number;
  /** Exponent of Zipf's law: model i is asked for with a probability in proportion to 1 / i^zipf; 0: all alike. */
  readonly zipf: number;
  readonly promptWords: number;
  readonly maxTokens: number;
  readonly seed: number;
}

/** Words that most vocabularies have as one token each. */
const words =
  'time year people way day man thing woman life child world school state family student group country problem hand part'.split(
    ' ',
  );

/** Poisson arrivals (exponential gaps) of requests for models by Zipf's law; the same seed gives the same load. */
export function arrivals({ models, rate, seconds, zipf, promptWords, maxTokens, seed }: LoadShape): Arrival[] {
  const random = randomStream(seed, 1);
  let total = 0;
  const upTo = models.map((_, i) => {
    total += 1 / (i + 1) ** zipf;
    return total;
  });
  const modelOf = (point: number): string =>
    models[
      Math.max(
        0,
        upTo.findIndex((sum) => point * total < sum),
      )
    ]!;
  const out: Arrival[] = [];
  for (let at = 0; ; ) {
    at += -Math.log(1 - random()) / rate;
    if (at >= seconds) return out;
    const prompt = Array.from({ length: promptWords }, () => words[Math.floor(random() * words.length)]).join(' ');
    out.push({ at, model: modelOf(random()), prompt, maxTokens });
  }
}
