// `replicate`: a run with a LoRA, a prediction that is followed, a file, a webhook's signature.
import { createServer } from 'node:http'
import Replicate, { validateWebhook } from 'replicate'
import { failure, fetched, key, tell, url, wanted } from './asked.mjs'

const client = new Replicate({
  auth: key,
  baseUrl: `${url}/replicate/v1`,
  useFileOutput: false,
})
const given = {
  prompt: wanted.prompt,
  seed: wanted.seed,
  num_inference_steps: wanted.steps,
  guidance_scale: wanted.cfg,
  width: wanted.width,
  height: wanted.height,
  lora: wanted.lora,
  lora_scale: wanted.scale,
}
const SDXL = 'stability-ai/sdxl'

const output = await client.run(SDXL, { input: given })
const picture = await fetched(output[0])
const made = await client.predictions.create({ model: SDXL, input: given })
const ended = await client.wait(made, { interval: 100 })
const over = await client.run(SDXL, {
  input: { ...given, image: new Blob([picture], { type: 'image/png' }), prompt_strength: 0.5 },
})

const message = new Promise((resolve) => {
  const server = createServer(async (request, response) => {
    const body = []
    for await (const part of request) body.push(part)
    response.writeHead(204).end()
    server.close()
    resolve({ headers: request.headers, body: Buffer.concat(body).toString() })
  })
  server.listen(0, '127.0.0.1', () => {
    client.predictions.create({
      model: SDXL,
      input: given,
      webhook: `http://127.0.0.1:${server.address().port}/`,
      webhook_events_filter: ['completed'],
    })
  })
})
const { headers, body } = await message
const { key: secret } = await client.webhooks.default.secret.get()
const proof = {
  id: headers['webhook-id'],
  timestamp: headers['webhook-timestamp'],
  signature: headers['webhook-signature'],
  secret,
}
tell([picture, await fetched(ended.output[0])], {
  status: ended.status,
  over: (await fetched(over[0])).length > 500,
  signed: await validateWebhook({ ...proof, body }),
  forged: await validateWebhook({ ...proof, body: `${body} ` }),
  error: await failure(() => client.run('black-forest-labs/flux-dev', { input: { prompt: 'x' } })),
})
