// `@fal-ai/client`, by its proxy: a request that is followed, one at once, one from a picture, an error.
import { readFile } from 'node:fs/promises'
import { createFalClient } from '@fal-ai/client'
import { failure, fetched, key, tag, tell, url, wanted } from './asked.mjs'

const fal = createFalClient({
  credentials: key,
  proxyUrl: { url: `${url}/fal/proxy`, when: 'always' },
})
const app = 'fal-ai/fast-sdxl'
const given = {
  prompt: wanted.prompt,
  seed: wanted.seed,
  num_inference_steps: wanted.steps,
  guidance_scale: wanted.cfg,
  image_size: { width: wanted.width, height: wanted.height },
  format: 'png',
}
const loras = [{ path: wanted.lora, scale: wanted.scale }]

const states = []
const subscribed = await fal.subscribe(app, {
  input: { ...given, loras },
  logs: true,
  pollInterval: 100,
  onQueueUpdate: (state) => states.push(state.status),
})
const atOnce = await fal.run(app, { input: { ...given, prompt: `${wanted.prompt} ${tag}` } })
const picture = await fetched(subscribed.data.images[0].url)
const over = await fal.run(`${app}/image-to-image`, {
  input: {
    ...given,
    image_url: `data:image/png;base64,${picture.toString('base64')}`,
    strength: 0.5,
  },
})
// A file in an input is sent by the client itself.
const stored = await fal.storage.upload(new Blob([await readFile(process.argv[2])]))
const sent = await fal.run(app, {
  input: { ...given, loras: [{ path: stored, scale: wanted.scale }] },
})
const fromBlob = await fal.run(`${app}/image-to-image`, {
  input: { ...given, image_url: new Blob([picture], { type: 'image/png' }), strength: 0.5 },
})
tell([picture, await fetched(sent.data.images[0].url), await fetched(atOnce.data.images[0].url)], {
  seed: subscribed.data.seed,
  states,
  same: fromBlob.data.images[0].url !== over.data.images[0].url &&
    (await fetched(fromBlob.data.images[0].url)).length > 500,
  over: (await fetched(over.data.images[0].url)).length > 500,
  error: await failure(() => fal.run(app, { input: { ...given, image_size: 'huge' } })),
})
