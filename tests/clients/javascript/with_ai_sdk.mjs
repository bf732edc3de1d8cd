// The AI SDK: one picture by each of its providers that can be pointed at a server.
import { createFal } from '@ai-sdk/fal'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { createReplicate } from '@ai-sdk/replicate'
import { generateImage } from 'ai'
import { failure, key, size, tag, tell, url, wanted } from './asked.mjs'

const { prompt, seed, steps, cfg, lora, scale } = wanted
const ours = { seed, steps, cfg }

const providers = {
  // It passes on neither the seed nor what OpenAI does not know.
  openai: {
    model: createOpenAI({ baseURL: `${url}/v1`, apiKey: key }).image('gpt-image-1'),
  },
  compatible: {
    model: createOpenAICompatible({
      name: 'pictures',
      baseURL: `${url}/v1`,
      apiKey: key,
    }).imageModel('sdxl'),
    providerOptions: { pictures: ours },
  },
  replicate: {
    model: createReplicate({ apiToken: key, baseURL: `${url}/replicate/v1` }).image(
      'stability-ai/sdxl',
    ),
    plain: prompt,
    seed,
    providerOptions: {
      replicate: { num_inference_steps: steps, guidance_scale: cfg, lora, lora_scale: scale },
    },
  },
  fal: {
    model: createFal({ apiKey: key, baseURL: `${url}/fal/run` }).image('fal-ai/fast-sdxl'),
    plain: prompt,
    seed,
    providerOptions: {
      fal: {
        num_inference_steps: steps,
        guidance_scale: cfg,
        format: 'png',
        loras: [{ path: lora, scale }],
      },
    },
  },
}
const pictures = []
for (const { plain, ...asked } of Object.values(providers)) {
  const { image } = await generateImage({ prompt: plain ?? `${prompt} ${tag}`, size, ...asked })
  pictures.push(image.uint8Array)
}
tell(pictures, {
  providers: Object.keys(providers),
  error: await failure(() =>
    generateImage({ model: providers.fal.model, prompt, size: '1001x1001', maxRetries: 0 }),
  ),
})
