/**
 * The first import of both entries of the package: on an older Node.js it throws before anything else is evaluated. For this the
 * published JavaScript has syntax only that older ones can parse (tsconfig.build.json).
 */
const oldest = 24;

if (Number(process.versions.node.split('.')[0]) < oldest) {
  throw new Error(
    `graft-llm needs Node.js ${oldest} or later, and this is Node.js ${process.versions.node}. Install a newer Node.js, or run the program with the one that npm installed with graft-llm: npx node program.js`,
  );
}
