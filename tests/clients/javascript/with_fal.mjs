// `@fal-ai/client`, by its proxy: a request that is followed, one at once, one from a picture, an error.
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
tell([picture, await fetched(atOnce.data.images[0].url)], {
  seed: subscribed.data.seed,
  states,
  over: (await fetched(over.data.images[0].url)).length > 500,
  error: await failure(() => fal.run(app, { input: { ...given, image_size: 'huge' } })),
})
