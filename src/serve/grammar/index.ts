export { SchemaGrammars } from './grammars.ts';
