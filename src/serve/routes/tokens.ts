import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { chatPrompt } from '../chat/index.ts';
import { badRequest } from '../errors.ts';
import { named, type Service } from '../service.ts';
import { chatSchema, readBody } from '../wire/index.ts';

const { messages, tools, chat_template_kwargs } = chatSchema.shape;

const tokenizeSchema = z.strictObject({
  model: z.string().optional(),
  prompt: z.string().optional(),
  messages: messages.optional(),
  tools,
  chat_template_kwargs,
  add_special_tokens: z.boolean().optional(),
  return_token_strs: z.boolean().default(false),
});
const detokenizeSchema = z.strictObject({ model: z.string().optional(), tokens: z.array(z.int().nonnegative()) });

/** POST /tokenize and /detokenize, as vLLM has them. */
export function tokenRoutes(app: FastifyInstance, service: Service): void {
  const { tokenizer, info } = service;
  app.post('/tokenize', async (request) => {
    const fields = readBody(tokenizeSchema, request.body, {
      add_generation_prompt: [true],
      continue_final_message: [false],
    });
    if (fields.model !== undefined) await named(service, fields.model);
    const ids = idsOf(fields);
    return {
      count: ids.length,
      max_model_len: info.contextLength,
      tokens: ids,
      ...(fields.return_token_strs && { token_strs: ids.map((id) => tokenizer.idToToken(id) ?? '') }),
    };
  });
  app.post('/detokenize', async (request) => {
    const { model, tokens } = readBody(detokenizeSchema, request.body);
    if (model !== undefined) await named(service, model);
    const outside = tokens.find((id) => id >= info.vocabSize);
    if (outside !== undefined)
      throw badRequest(`${outside} is not a token id below ${info.vocabSize}.`, 'tokens', 'invalid');
    return { prompt: tokenizer.decode(tokens) };
  });

  function idsOf(fields: z.infer<typeof tokenizeSchema>): readonly number[] {
    const { prompt, messages: conversation, add_special_tokens: addSpecialTokens } = fields;
    if ((prompt === undefined) === (conversation === undefined))
      throw badRequest("Send one of 'prompt' and 'messages'.", 'prompt', 'invalid');
    if (conversation) {
      if (addSpecialTokens)
        throw badRequest("The template of 'messages' has the special tokens.", 'add_special_tokens', 'unsupported');
      return chatPrompt(
        service,
        { messages: conversation, chat_template_kwargs: fields.chat_template_kwargs },
        fields.tools,
      );
    }
    const ofChat = (['tools', 'chat_template_kwargs'] as const).find((field) => fields[field] !== undefined);
    if (ofChat) throw badRequest(`'${ofChat}' needs 'messages'.`, ofChat, 'invalid');
    return service.encoder.encode(prompt!, addSpecialTokens ?? true, 'prompt');
  }
}
