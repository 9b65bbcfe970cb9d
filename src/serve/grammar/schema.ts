import { badRequest } from '../errors.ts';

type Schema = Readonly<Record<string, unknown>>;

/** Keywords that the grammar follows, by what stands in them. */
const followed = {
  /** A schema. */
  schema: new Set(['additionalProperties', 'unevaluatedProperties', 'unevaluatedItems', 'items', 'propertyNames']),
  /** A list of schemas. */
  schemas: new Set(['anyOf', 'oneOf', 'allOf', 'prefixItems']),
  /** Schemas by name. */
  named: new Set(['properties', 'patternProperties', '$defs', 'definitions']),
  /** A value. */
  value: new Set([
    ...[
      'type',
      'enum',
      'const',
      'required',
      '$ref',
      'pattern',
      'format',
      'minLength',
      'maxLength',
      'minItems',
      'maxItems',
    ],
    ...['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'minProperties', 'maxProperties'],
  ]),
  /** What says nothing of which answers are right. */
  remark: new Set([
    'title',
    'description',
    'default',
    'examples',
    '$schema',
    '$id',
    '$comment',
    'deprecated',
    'readOnly',
    'writeOnly',
  ]),
};

/** Formats whose texts the grammar follows. */
const formats = new Set([
  ...['date', 'time', 'date-time', 'duration', 'hostname', 'ipv4', 'ipv6', 'uuid', 'uri', 'uri-reference'],
  ...['uri-template', 'json-pointer', 'relative-json-pointer'],
]);

const isObject = (value: unknown): value is Schema =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * Checks that nothing in a JSON schema would be ignored.
 * @param param the field that has it
 * @throws RequestError 400 naming the first keyword that the grammar does not follow
 */
export function checkSchema(schema: unknown, param: string): void {
  if (typeof schema === 'boolean') return;
  if (!isObject(schema))
    throw badRequest(`'${param}' is not a JSON schema: expected an object.`, param, 'invalid_schema');
  for (const [keyword, value] of Object.entries(schema)) {
    const place = `${param}.${keyword}`;
    if (followed.remark.has(keyword) || followed.value.has(keyword)) continue;
    if (followed.schema.has(keyword)) checkSchema(value, place);
    else if (followed.schemas.has(keyword) && Array.isArray(value)) {
      for (const [i, item] of value.entries()) checkSchema(item, `${place}[${i}]`);
    } else if (followed.named.has(keyword) && isObject(value)) {
      for (const [name, item] of Object.entries(value)) checkSchema(item, `${place}.${name.slice(0, 64)}`);
    } else {
      throw badRequest(
        `The schema uses '${keyword.slice(0, 64)}' at '${param.slice(-200)}', which answers cannot be made to follow here. Leave it out.`,
        param.slice(0, 200),
        'unsupported_schema',
      );
    }
  }
  checkTogether(schema, param);
}

/** Keywords that decide alone: what stands beside them would be ignored. */
const alone = ['$ref', 'const', 'enum', 'anyOf', 'oneOf', 'allOf'];

const typeNameOf = (value: unknown): string[] => {
  if (value === null) return ['null'];
  if (Array.isArray(value)) return ['array'];
  if (typeof value === 'number') return Number.isInteger(value) ? ['integer', 'number'] : ['number'];
  return [typeof value];
};

/** Checks keywords that are followed one by one and not together. */
function checkTogether(schema: Schema, param: string): void {
  const refuse = (problem: string) => {
    throw badRequest(`The schema at '${param.slice(-200)}' ${problem}.`, param.slice(0, 200), 'unsupported_schema');
  };
  const deciding = alone.find((keyword) => keyword in schema);
  const types = schema.type === undefined ? undefined : [schema.type].flat();
  const values = deciding === 'enum' ? schema.enum : deciding === 'const' ? [schema.const] : undefined;
  const ofType = Array.isArray(values) && (!types || values.every((v) => typeNameOf(v).some((t) => types.includes(t))));
  for (const keyword of Object.keys(schema)) {
    if (!deciding || keyword === deciding || followed.remark.has(keyword)) continue;
    if (keyword === '$defs' || keyword === 'definitions' || (keyword === 'type' && ofType)) continue;
    refuse(`has '${keyword.slice(0, 64)}' beside '${deciding}', which are not followed together`);
  }
  const bound = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'].find((keyword) => keyword in schema);
  if (bound && !(types?.length === 1 && types[0] === 'integer'))
    refuse(`has '${bound}', which is followed for the type integer only`);
  const { format } = schema;
  if (format !== undefined && !(typeof format === 'string' && formats.has(format)))
    refuse(`has a 'format' that is not supported: use one of ${[...formats].join(', ')}`);
  if (typeof schema.pattern === 'string' && /["\p{Cc}]|\\["\\nrtfvbxuc0]/u.test(schema.pattern))
    refuse('has a pattern with quotation marks, backslashes or control characters, which JSON escapes');
  const beside = ['pattern', 'minLength', 'maxLength'].find((keyword) => keyword in schema);
  if (format !== undefined && beside) refuse(`has '${beside}' beside 'format', which are not followed together`);
  if (Array.isArray(schema.allOf) && schema.allOf.length > 1)
    refuse("has several schemas in 'allOf'. Write them as one");
}
