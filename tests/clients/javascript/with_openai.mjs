// `openai`: a picture with a LoRA, streamed; an edit; the models; an error.
import OpenAI, { toFile } from 'openai'
import { failure, key, size, tag, tell, url, wanted } from './asked.mjs'

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key })
const ours = { seed: wanted.seed, steps: wanted.steps, cfg: wanted.cfg }
const asked = { model: 'gpt-image-1', size, ...ours }

const drawn = await client.images.generate({
  prompt: wanted.prompt,
  loras: [{ name: wanted.lora, scale: wanted.scale }],
  ...asked,
})
const picture = Buffer.from(drawn.data[0].b64_json, 'base64')
const kinds = []
let streamed
for await (const event of await client.images.generate({
  prompt: `${wanted.prompt} ${tag}`,
  stream: true,
  partial_images: 1,
  ...asked,
})) {
  kinds.push(event.type)
  streamed = Buffer.from(event.b64_json, 'base64')
}
const edited = await client.images.edit({
  image: await toFile(picture, 'a.png', { type: 'image/png' }),
  prompt: wanted.prompt,
  strength: 0.5,
  loras: [{ name: wanted.lora, scale: 0.5 }],
  ...asked,
})
const models = []
for await (const model of client.models.list()) models.push(model.id)
tell([picture, streamed], {
  kinds,
  edited: Buffer.from(edited.data[0].b64_json, 'base64').length > 500,
  models,
  error: await failure(() => client.images.generate({ prompt: 'x', model: 'flux' })),
})
