// SillyTavern's own server in front of ours: what its page asks of it when it connects and draws.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { key, tag, tell, url, wanted } from './asked.mjs'

const home = path.resolve('sillytavern/node_modules/sillytavern')
const data = mkdtempSync(path.join(tmpdir(), 'sillytavern-'))
const port = await new Promise((resolve) => {
  const probe = createServer().listen(0, '127.0.0.1', () => {
    const free = probe.address().port
    probe.close(() => resolve(free))
  })
})
const settings = {
  '--port': port,
  '--listen': false,
  '--whitelist': false,
  '--disableCsrf': true,
  '--browserLaunchEnabled': false,
  '--dataRoot': path.join(data, 'data'),
  '--configPath': path.join(data, 'config.yaml'),
}
const server = spawn(process.execPath, ['server.js', ...Object.entries(settings).flat()], {
  cwd: home,
  stdio: ['ignore', 'pipe', 'pipe'],
})
let log = ''
for (const stream of [server.stdout, server.stderr]) stream.on('data', (text) => (log += text))
process.on('exit', () => {
  server.kill('SIGKILL')
  rmSync(data, { recursive: true, force: true })
})

/** What SillyTavern's server answers to its page. */
async function ask(name, body = {}) {
  const answer = await fetch(`http://127.0.0.1:${port}/api/sd/${name}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ url, auth: `sdxl:${key}`, ...body }),
  })
  if (!answer.ok) throw new Error(`${name}: ${answer.status}\n${log.slice(-3000)}`)
  return answer
}

const until = Date.now() + 120_000
for (;;) {
  const is = await fetch(`http://127.0.0.1:${port}/`).catch(() => null)
  if (is) break
  if (server.exitCode !== null || Date.now() > until) throw new Error(log.slice(-3000))
  await new Promise((resolve) => setTimeout(resolve, 250))
}
await ask('ping')
const found = {}
for (const name of ['upscalers', 'vaes', 'samplers', 'schedulers', 'models'])
  found[name] = await (await ask(name)).json()
const model = await (await ask('get-model')).text()
await ask('set-model', { model })
const drawn = await (
  await ask('generate', {
    prompt: `${wanted.prompt} ${tag}`,
    negative_prompt: '',
    sampler_name: '',
    scheduler: 'automatic',
    steps: wanted.steps,
    cfg_scale: wanted.cfg,
    width: wanted.width,
    height: wanted.height,
    seed: wanted.seed,
    restore_faces: false,
    enable_hr: false,
    hr_upscaler: 'None',
    hr_scale: 1,
    hr_additional_modules: [],
    denoising_strength: 0.7,
    hr_second_pass_steps: 0,
    clip_skip: 1,
    override_settings: { CLIP_stop_at_last_layers: 1, forge_additional_modules: [] },
    override_settings_restore_afterwards: true,
    do_not_save_grid: true,
    send_images: true,
    save_images: false,
  })
).json()
const wrong = await fetch(`http://127.0.0.1:${port}/api/sd/ping`, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({ url, auth: 'sdxl:wrong' }),
})
tell([Buffer.from(drawn.images[0], 'base64')], { ...found, model, wrong: wrong.status })
process.exit(0)
