/**
 * Writes docs/api/index.md and docs/api/engine.md: what `graft-llm` and `graft-llm/engine` export, with signatures and docstrings.
 * `npm run generate` writes them too; a test compares. An export without a docstring or a group is an error.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { packageRoot } from '../../src/base/index.ts';
import { type Docstring, type Export, type Member, readEntries } from './api-reader.ts';
import { type GeneratedFile, markdownTable } from './markdown.ts';

/** A heading, and the exports below it in this order. */
type Groups = Readonly<Record<string, readonly string[]>>;

const libraryGroups: Groups = {
  'Sessions and models': [
    ...[
      'Session',
      'SessionOptions',
      'LoadedModel',
      'LoadSettings',
      'ModelSettings',
      'ModelInfo',
      'UseOptions',
      'Running',
      'Abortable',
    ],
    ...['Quantize', 'Activation', 'TaskName'],
  ],
  'Generated text': ['Prompt', 'Message', 'GenerateSettings', 'SamplingOptions', 'GenerateResult'],
  Rows: [
    ...[
      'RowStream',
      'RowSource',
      'RowInput',
      'RowsOptions',
      'Format',
      'formatNames',
      'Truncation',
      'RowReport',
      'RowPlaces',
    ],
    ...['IdRows', 'TaskPreview', 'RowPreview', 'RowPiece', 'LengthBin', 'ClassCount'],
  ],
  'Predictions and metrics': [
    ...['Prediction', 'PredictResult', 'Classification', 'ClassifyResult', 'EvaluateResult', 'Metric', 'Confusion'],
    ...['Logits', 'Identity', 'Progress'],
  ],
  Recipes: [
    ...['RecipeInput', 'OneTaskRecipe', 'SeveralTasksRecipe', 'CommonInput', 'TaskInput', 'WeightedTaskInput'],
    ...['DataInput', 'TrainInput', 'EvalInput', 'RunInput', 'readRecipe', 'parseRecipe', 'Recipe'],
    ...[
      'OptimizerInput',
      'AdamwInput',
      'Adamw8bitInput',
      'SgdInput',
      'LionInput',
      'LomoInput',
      'AdalomoInput',
      'AdafactorInput',
      'GaloreInput',
    ],
    'OptimizerChoice',
  ],
  'Methods in recipes': [
    ...['MethodInput', 'LoraInput', 'AdaloraInput', 'Ia3Input', 'BottleneckInput', 'FusionInput', 'PrefixInput'],
    ...[
      'PromptInput',
      'MultitaskPromptInput',
      'PTuningInput',
      'FullInput',
      'QatInput',
      'LayerwiseInput',
      'MethodChoice',
    ],
  ],
  'Several processes': [
    ...['launch', 'LaunchOptions', 'launchEnvironment', 'RankPlacement', 'RankReport'],
    ...['PlanOptions', 'RanksPlan', 'ClusterPlan', 'StagePlan', 'Stage'],
  ],
  'Training: events and results': [
    'TrainOptions',
    'RunOptions',
    'TrainEvent',
    'RunMemory',
    'ModelPart',
    'TrainResult',
    'SavedResult',
    'TaskResult',
  ],
  Adapters: [
    ...['CombineSettings', 'Combination', 'CombineResult', 'MergeSettings', 'MergeResult'],
    ...['MergeCheckpointSettings', 'MergeCheckpointResult', 'convertAdapter'],
    ...['AdapterFormat', 'adapterFormats', 'formatOf', 'readAdapterConfig'],
  ],
  'A server': ['serve', 'ServerOptions', 'Server', 'Limits', 'LimitChoices', 'ResolveAdapter', 'readKeys'],
  Serving: [
    ...['Serving', 'ServeOptions', 'ServingStats', 'AddAdapterOptions', 'GenerationRequest', 'WeightedAdapter'],
    ...['GenerationDelta', 'GenerationEnd', 'EndReason', 'TokenLogprob'],
  ],
  'Quantised files': [
    ...['QuantizeSettings', 'QuantizeResult', 'Drift', 'WrittenModel', 'ExportChoice', 'ExportFormat', 'exportFormats'],
    ...['WeightFormat', 'BlockFormat', 'IntegerFormat', 'FloatFormat'],
  ],
  Comparisons: [
    ...[
      'readComparison',
      'Comparison',
      'Contestant',
      'Results',
      'Outcome',
      'Failure',
      'readResults',
      'writeResults',
      'comparisonPage',
    ],
  ],
  'Files of models': [
    ...[
      'resolveModel',
      'ResolveOptions',
      'DownloadProgress',
      'tokenizerOf',
      'loadTokenizer',
      'Tokenizer',
      'TextStream',
    ],
  ],
  'This machine': [
    ...[
      'DoctorResult',
      'MemoryPlan',
      'Fit',
      'MemoryChoice',
      'Precision',
      'processor',
      'Processor',
      'engineStatus',
      'LibTorch',
      'Gpu',
    ],
  ],
  Errors: ['GraftError', 'ErrorKind', 'errorKinds', 'ErrorDetails', 'ErrorJson', 'CauseJson', 'OtherErrorJson'],
};

const engineGroups: Groups = {
  'The engine': ['startEngine', 'StartOptions', 'Engine', 'Cuda'],
  Models: [
    ...['loadModel', 'LoadOptions', 'HeadOptions', 'openModel', 'saveModel', 'Model', 'TaskHead', 'Pooling'],
    ...['SharedWeights', 'packTokens', 'PackedTokens'],
  ],
  'Methods and adapters': [
    ...['attach', 'methods', 'Method', 'Adapter', 'AttachedAdapter', 'loadAdapter', 'saveAdapter', 'SaveOptions'],
    ...['combineAdapters', 'CombineOptions', 'averageAdapters'],
    ...[
      'loadResident',
      'loadingResident',
      'ResidentAdapter',
      'Banks',
      'AdapterBanks',
      'MixedAdapter',
      'FactorType',
      'Steps',
    ],
  ],
  Training: [
    ...[
      'trainStep',
      'StepInput',
      'StepResult',
      'MicroBatch',
      'batchLoss',
      'createOptimizer',
      'Placement',
      'Optimizer',
      'BackwardUpdates',
    ],
    ...['clipGradients', 'scheduleFactor', 'ScheduleConfig'],
    ...['activeLayers', 'ActiveLayers', 'ActiveLayersInput', 'ActiveParts'],
  ],
  'Several processes': [
    ...[
      'joinGroup',
      'Group',
      'JoinedGroup',
      'oneProcess',
      'Traffic',
      'shardingOf',
      'Sharding',
      'PartOfParameter',
      'Gate',
      'Gates',
    ],
  ],
  'Tasks and metrics': [
    'taskOf',
    'Task',
    'TaskOptions',
    'measure',
    'EvalResult',
    'MeasureOptions',
    'TaskMetrics',
    'wilson',
  ],
  Generation: [
    ...['generateText', 'TextOptions', 'TextResult', 'generate', 'GenerateOptions', 'GenerateSummary', 'scoreChoices'],
    ...['ChatTemplate', 'RenderOptions'],
  ],
  Rows: ['readRecords', 'ReadOptions', 'RawRecord', 'Row'],
  Tensors: [
    ...[
      'Tensor',
      'DType',
      'Device',
      'TypedArray',
      'ops',
      'scope',
      'scoped',
      'Scope',
      'noGrad',
      'Generator',
      'manualSeed',
    ],
  ],
  'Files of weights': [
    ...['openSafetensors', 'openGguf', 'WeightSource', 'WeightEntry', 'MetadataValue', 'NumberArray'],
    ...['writeSafetensors', 'TensorToWrite'],
  ],
};

/** Types that signatures of an entry name and that it does not export: parts of the structure that may change. */
export const internalTypes: Readonly<Record<'library' | 'engine', readonly string[]>> = {
  library: ['TaskFields'],
  engine: [
    ...['AttachContext', 'Binding', 'CombineSettings', 'Example', 'ExampleRows', 'Family', 'FormatName', 'GgufSource'],
    ...[
      'ImageShape',
      'Kernels',
      'CachedRows',
      'LayerPolicy',
      'Linear',
      'Module',
      'OnBatch',
      'Owned',
      'Packed',
      'Ports',
    ],
    ...[
      'RowLoss',
      'RowTools',
      'SavableAdapter',
      'ScratchFile',
      'Sites',
      'StoredWeight',
      'Written',
      'Rounding',
      'WrittenOptions',
    ],
  ],
};

/** Escapes prose for Markdown, and links the documents that it names. Code between backticks stays as it is. */
function prose(text: string): string {
  return text
    .split(/(`[^`]*`)/)
    .map((part, i) =>
      i % 2 === 1
        ? part
        : part
            .replaceAll('<', '&lt;')
            .replaceAll('*', '\\*')
            .replaceAll(/\bdocs\/([\w/-]+\.md)/g, (path, name) =>
              existsSync(join(packageRoot, path)) ? `[${path}](../${name})` : path,
            ),
    )
    .join('');
}

const sentence = (text: string) => prose(text).replace(/[^.!?]$/, '$&.');

const slug = (heading: string) =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-');
const headingOf = ({ name, kind }: Export) => `${name} (${kind})`;
const codeBlock = (code: string) => `\`\`\`ts\n${code}\n\`\`\``;

/** Where each exported name is described: the page and the anchor. */
type Places = ReadonlyMap<string, string>;

function typesLine(types: readonly string[], places: Places): string[] {
  const links = types.filter((name) => places.has(name)).map((name) => `[${name}](${places.get(name)})`);
  return links.length > 0 ? [`Types: ${links.join(', ')}.`] : [];
}

function docBlocks({ text, params, throws }: Docstring): string[] {
  return [
    ...(text ? [prose(text)] : []),
    ...(params.length > 0 ? [params.map(([name, about]) => `- \`${name}\`: ${prose(about)}`).join('\n')] : []),
    ...throws.map((one) => `**Throws** ${sentence(one)}`),
  ];
}

const docCell = ({ text, params, throws }: Docstring) =>
  [
    prose(text),
    ...params.map(([name, about]) => `\`${name}\`: ${sentence(about)}`),
    ...throws.map((one) => `**Throws** ${sentence(one)}`),
  ].join(' ');

/** Returns a table of fields: those of an interface, or the properties of a class. */
function fieldTable(members: readonly Member[], head = 'field'): string {
  const rows = members.map(({ name, kind, signature, modifiers, isOptional, doc }) => {
    const line = signature
      .replaceAll(/\s*\n\s*/g, ' ')
      .replace(/\(\s+/, '(')
      .replace(/,\s*\)/, ')');
    const type = kind !== 'method' && isOptional ? line.replace(/ \| undefined$/, '') : line;
    const canBeSet = head === 'property' && !modifiers.includes('readonly') ? ' Can be set.' : '';
    return [`\`${name}${isOptional ? '?' : ''}\``, `\`${type}\``, docCell(doc) + canBeSet];
  });
  return markdownTable([head, 'type', 'description'], rows);
}

function methodBlocks(owner: Export, { name, kind, signature, doc, types }: Member, places: Places): string[] {
  return [
    `#### ${kind === 'constructor' ? `new ${owner.name}` : `${owner.name}.${name}`}`,
    codeBlock(signature),
    ...docBlocks(doc),
    ...typesLine(
      types.filter((type) => type !== owner.name),
      places,
    ),
  ];
}

function exportBlocks(entry: Export, places: Places): string[] {
  const { kind, signature, doc, members, types } = entry;
  const head = [`### ${headingOf(entry)}`, codeBlock(signature), ...docBlocks(doc)];
  if (kind !== 'class') {
    return [...head, ...(members.length > 0 ? [fieldTable(members)] : []), ...typesLine(types, places)];
  }
  const [properties, methods] = [true, false].map((isProperty) =>
    members.filter((member) => (member.kind === 'property') === isProperty),
  ) as [Member[], Member[]];
  return [
    ...head,
    ...(properties.length > 0 ? [fieldTable(properties, 'property')] : []),
    ...methods.flatMap((method) => methodBlocks(entry, method, places)),
  ];
}

/** @throws Error where an export or a member has no docstring, or a signature names a type that is neither exported nor internal */
function requireComplete(entries: readonly Export[], internal: readonly string[]): void {
  const undocumented = entries.flatMap(({ name, file, doc, members }) => [
    ...(doc.text ? [] : [`${name} (${file})`]),
    ...members.filter((member) => !member.doc.text).map((member) => `${name}.${member.name} (${file})`),
  ]);
  if (undocumented.length > 0) throw new Error(`these exports have no docstring: ${undocumented.join(', ')}`);
  const named = new Set(entries.flatMap(({ types }) => types));
  const unexported = [...named].filter((type) => !entries.some(({ name }) => name === type));
  const problems = [
    ...unexported.filter((type) => !internal.includes(type)).map((type) => `${type} is named, and not exported`),
    ...internal.filter((type) => !unexported.includes(type)).map((type) => `${type} is listed as internal, and is not`),
  ];
  if (problems.length > 0) throw new Error(`the types of the exports: ${problems.join('; ')}`);
}

/** Returns the exports of every group. @throws Error where an export has no group, or a group names no export */
function grouped(entries: readonly Export[], groups: Groups, elsewhere: (name: string) => boolean) {
  const names = Object.values(groups).flat();
  const byName = new Map(entries.map((entry) => [entry.name, entry]));
  const problems = [
    ...entries.filter(({ name }) => names.includes(name) === elsewhere(name)).map(({ name }) => name),
    ...names.filter((name, i) => !byName.has(name) || names.indexOf(name) !== i),
  ];
  if (problems.length > 0) throw new Error(`these belong in one group of api.ts: ${problems.join(', ')}`);
  return Object.entries(groups).map(([title, list]) => [title, list.map((name) => byName.get(name)!)] as const);
}

function page(
  title: string,
  intro: readonly string[],
  groups: readonly (readonly [title: string, entries: readonly Export[]])[],
  places: Places,
): string {
  const contents = groups.map(
    ([group, entries]) =>
      `- [${group}](#${slug(group)}): ${entries.map((entry) => `[${entry.name}](#${slug(headingOf(entry))})`).join(', ')}`,
  );
  const blocks = groups.flatMap(([group, entries]) => [
    `## ${group}`,
    ...entries.flatMap((entry) => exportBlocks(entry, places)),
  ]);
  const anchors = blocks.filter((block) => block.startsWith('#')).map((block) => slug(block.replace(/^#+ /, '')));
  const repeated = anchors.filter((anchor, i) => anchors.indexOf(anchor) !== i);
  if (repeated.length > 0) throw new Error(`${title} has more than one heading for ${repeated.join(', ')}`);
  const generated = '<!-- Generated by tools/codegen/api.ts from the docstrings in src/. Do not edit. -->';
  return `${generated}\n${[`# ${title}`, ...intro, contents.join('\n'), ...blocks].join('\n\n')}\n`;
}

/** Returns both pages. An export of both entries is described on the library's page. */
export function apiPages(): GeneratedFile[] {
  const [library, engine] = readEntries(['src/index.ts', 'src/engine-entry.ts']) as [Export[], Export[]];
  requireComplete(library, internalTypes.library);
  requireComplete(engine, internalTypes.engine);
  const shared = new Set(library.map(({ name }) => name));
  const anchorOf = (entry: Export) => `#${slug(headingOf(entry))}`;
  const libraryPlaces = new Map(library.map((entry) => [entry.name, anchorOf(entry)]));
  const enginePlaces = new Map([
    ...engine.map((entry) => [entry.name, anchorOf(entry)] as const),
    ...library.map((entry) => [entry.name, `index.md${anchorOf(entry)}`] as const),
  ]);
  const also = engine
    .filter(({ name }) => shared.has(name))
    .map(({ name }) => `[${name}](${enginePlaces.get(name)})`)
    .join(', ');
  return [
    {
      path: 'docs/api/index.md',
      text: page(
        'The library: graft-llm',
        [
          'What `graft-llm` exports. Most programs need [Session](#session-class) only; [graft-llm/engine](engine.md) has the parts below it.',
          'Names are camelCase in TypeScript, except the fields of recipes, which are spelled as in recipe files. A `?` marks what may be absent.',
        ],
        grouped(library, libraryGroups, () => false),
        libraryPlaces,
      ),
    },
    {
      path: 'docs/api/engine.md',
      text: page(
        'The engine: graft-llm/engine',
        [
          'What `graft-llm/engine` exports: the engine in the calling thread, for training loops and tools of your own. Await [startEngine](#startengine-function) first; everything after it is synchronous and blocks the thread. Letters in shapes: N packed tokens, R rows, C width of hidden states, V vocabulary, L labels.',
          `Described on the page of [graft-llm](index.md), which exports them too: ${also}.`,
          `Types that signatures name and that are not exported belong to the inner structure, and may change: ${internalTypes.engine.map((name) => `\`${name}\``).join(', ')}.`,
        ],
        grouped(engine, engineGroups, (name) => shared.has(name)),
        enginePlaces,
      ),
    },
  ];
}

if (import.meta.main) {
  for (const { path, text } of apiPages()) {
    mkdirSync(dirname(join(packageRoot, path)), { recursive: true });
    writeFileSync(join(packageRoot, path), text);
    console.log(`${path}: ${text.split('\n').length} lines`);
  }
}
