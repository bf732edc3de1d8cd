// The text that this project and A1111 write into a picture's file, read in the API's own words.
// Knows neither the form nor what the worker has.

export interface ReadHires {
  scale?: number;
  upscaler?: string;
  steps?: number;
  strength?: number;
  cfg?: number;
  scheduler?: string;
  prompt?: string;
  negative_prompt?: string;
}

interface ReadGuide {
  scale: number;
  start: number;
  end: number;
}

/** What a text says; what it leaves out is not there. A sampler is named as the text names it. */
export interface Infotext {
  prompt: string;
  negative_prompt: string;
  loras: { name: string; scale?: number; sha256?: string }[];
  embeddings: { token: string; sha256: string }[];
  prompt_syntax: 'weights' | 'a1111';
  steps?: number;
  cfg?: number;
  seed?: number;
  width?: number;
  height?: number;
  scheduler?: string;
  clip_skip?: number;
  guidance_rescale?: number;
  hires?: ReadHires;
  strength?: number;
  mask?: { invert: boolean };
  inpaint?: { area?: string; padding?: number; blur?: number; fill?: string; soft?: boolean };
  outpaint?: Record<string, number>;
  controls: (ReadGuide & { model: string; type?: string; canny?: { low: number; high: number } })[];
  references: (ReadGuide & { adapter: string })[];
}

const LORA = / ?<lora:([^:>]+)(?::(-?[\d.e-]+))?(?::[^>]*)?>/g;
const FACT = /\s*([\w ./+-]{1,60}): ("(?:[^"\\]|\\.)*"|[^,\n]*)(?:,|\n|$)/gy;
const FILLS: Record<string, string> = {
  fill: 'surroundings',
  original: 'original',
  'latent noise': 'noise',
  'latent nothing': 'nothing',
};
const UPSCALERS: Record<string, string> = { latent: 'latent', lanczos: 'lanczos' };
/** SDXL leaves its last layer out anyway, which A1111 counts as 2. */
const OWN_CLIP_SKIP = 2;
const GUIDES_MAX = 8;

function unquoted(value: string): string {
  if (!value.startsWith('"')) return value.trim();
  try {
    return JSON.parse(value) as string;
  } catch {
    return value.slice(1, -1);
  }
}

function factsIn(line: string): Map<string, string> {
  const facts = new Map<string, string>();
  for (const [, key = '', value = ''] of line.matchAll(FACT)) facts.set(key.trim(), unquoted(value));
  return facts;
}

/** `name: hash, name: hash` */
function hashesIn(text: string | undefined): [name: string, hash: string][] {
  return (text ?? '').split(',').flatMap((part) => {
    const [name = '', hash = ''] = part.split(':').map((one) => one.trim());
    return name && hash ? [[name, hash.toLowerCase()]] : [];
  });
}

/** Leaves out what is undefined. */
function told<T extends object>(values: T): T | undefined {
  const known = Object.entries(values).filter(([, value]) => value !== undefined);
  return known.length ? (Object.fromEntries(known) as T) : undefined;
}

export function readInfotext(text: string): Infotext {
  const plain = text.replace(/\r\n?/g, '\n');
  // The last one: a prompt may have such a line of its own.
  const at = [...plain.matchAll(/^Steps: \d+/gm)].at(-1)?.index ?? plain.length;
  const facts = factsIn(plain.slice(at));
  const above = plain.slice(0, at).replace(/\n$/, '');
  const negativeAt = above.search(/^Negative prompt: /m);
  const prompt = negativeAt < 0 ? above : above.slice(0, negativeAt);
  const negative = negativeAt < 0 ? '' : above.slice(negativeAt + 'Negative prompt: '.length);

  const figure = (key: string): number | undefined => {
    const value = Number(facts.get(key)?.trim() || NaN);
    return Number.isFinite(value) ? value : undefined;
  };
  const sampler = (name: string, spacing: string): string | undefined => {
    const solver = facts.get(name);
    const space = facts.get(spacing) ?? 'Automatic';
    if (!solver || solver === 'Use same sampler') return undefined;
    return /^(automatic|use same scheduler)$/i.test(space) ? solver : `${solver} ${space}`;
  };
  const hashes = new Map(hashesIn(facts.get('Lora hashes')));
  const size = /^(\d+)x(\d+)$/.exec(facts.get('Size') ?? '');
  const isA1111s = ['Version', 'Model hash', 'Schedule type'].some((key) => facts.has(key));
  const syntax = facts.get('Prompt syntax') ?? (isA1111s ? 'a1111' : 'weights');
  const skipped = (figure('Clip skip') ?? 0) - OWN_CLIP_SKIP;
  const found: Infotext = {
    prompt: prompt.replace(LORA, '').trim(),
    negative_prompt: negative.trim(),
    loras: [...prompt.matchAll(LORA)].map(([, name = '', scale]) => ({
      name,
      ...(scale === undefined ? {} : { scale: Number(scale) }),
      ...(hashes.has(name) ? { sha256: hashes.get(name) ?? '' } : {}),
    })),
    embeddings: hashesIn(facts.get('TI hashes')).map(([token, sha256]) => ({ token, sha256 })),
    prompt_syntax: syntax === 'a1111' ? 'a1111' : 'weights',
    steps: figure('Steps'),
    cfg: figure('CFG scale'),
    seed: figure('Seed'),
    width: size ? Number(size[1]) : undefined,
    height: size ? Number(size[2]) : undefined,
    scheduler: sampler('Sampler', 'Schedule type'),
    // A1111 itself ignores it where the model is SDXL's.
    clip_skip: skipped > 0 && !isA1111s ? skipped : undefined,
    guidance_rescale: figure('CFG Rescale phi'),
    ...guidesIn(facts),
  };
  const strength = figure('Denoising strength');
  if (facts.has('Hires upscale')) {
    const upscaler = facts.get('Hires upscaler');
    found.hires = told<ReadHires>({
      scale: figure('Hires upscale'),
      upscaler: upscaler && (UPSCALERS[upscaler.toLowerCase()] ?? upscaler),
      steps: figure('Hires steps'),
      strength,
      cfg: figure('Hires CFG Scale'),
      scheduler: sampler('Hires sampler', 'Hires schedule type'),
      prompt: facts.get('Hires prompt'),
      negative_prompt: facts.get('Hires negative prompt'),
    });
  } else if (strength !== undefined) Object.assign(found, overIn(facts, figure), { strength });
  return told(found) as Infotext;
}

/** How a picture was drawn over. */
function overIn(
  facts: Map<string, string>,
  figure: (key: string) => number | undefined,
): Pick<Infotext, 'mask' | 'inpaint' | 'outpaint'> {
  const borders = facts.get('Outpaint');
  const hasMask = !borders && facts.has('Mask blur');
  return {
    ...(hasMask ? { mask: { invert: facts.get('Mask mode') === 'Inpaint not masked' } } : {}),
    inpaint: told<NonNullable<Infotext['inpaint']>>({
      area: facts.get('Inpaint area') === 'Only masked' ? 'masked' : undefined,
      padding: figure('Masked area padding'),
      blur: figure('Mask blur'),
      fill: FILLS[facts.get('Masked content') ?? ''],
      soft: facts.get('Soft inpainting enabled') === 'True' || undefined,
    }),
    ...(borders
      ? {
          outpaint: Object.fromEntries(
            borders.split(',').map((border) => {
              const [side = '', px] = border.trim().split(' ');
              return [side, Number(px)];
            }),
          ),
        }
      : {}),
  };
}

function guidesIn(facts: Map<string, string>): Pick<Infotext, 'controls' | 'references'> {
  const found: Pick<Infotext, 'controls' | 'references'> = { controls: [], references: [] };
  for (let number = 0; number < GUIDES_MAX; number++) {
    const unit = factsIn(facts.get(`ControlNet ${number}`) ?? '');
    const name = unit.get('Model')?.replace(/\s*\[[0-9a-f]{4,64}\]$/, '');
    if (!name) continue;
    const figure = (key: string, open: number) => Number(unit.get(key) ?? open);
    const times = {
      scale: figure('Weight', 1),
      start: figure('Guidance Start', 0),
      end: figure('Guidance End', 1),
    };
    const module = unit.get('Module') ?? 'none';
    const type = unit.get('Union Control Type');
    if (/^ip-adapter/i.test(module)) found.references.push({ adapter: name, ...times });
    else
      found.controls.push({
        model: name,
        ...(type && type !== 'Unknown' ? { type } : {}),
        ...(module === 'canny'
          ? { canny: { low: figure('Threshold A', 100), high: figure('Threshold B', 200) } }
          : {}),
        ...times,
      });
  }
  return found;
}

/** A name of a sampler without the ways in which tools spell it. */
const plainSampler = (name: string): string =>
  name
    .toLowerCase()
    .replace(/[\s_().-]/g, '')
    .replaceAll('++', 'pp')
    .replaceAll('scheduler', '')
    .replaceAll('sgmuniform', 'trailing')
    .replaceAll('ancestral', 'a');

/** Which of the `offered` samplers a text means; null: none of them. */
export const samplerNamed = (name: string | undefined, offered: string[]): string | null =>
  name === undefined ? null : (offered.find((one) => plainSampler(one) === plainSampler(name)) ?? null);
