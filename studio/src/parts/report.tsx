// What is known of a content: its settings, what each LoRA did, where the time went, its cost.

import { duration, moment, number, plural, t, tMaybe, usd } from '../i18n';
import { avatars, loras } from '../store';
import type { Content } from '../types';

// In the order in which they happen; neighbours have different tones.
const PHASES = [
  'queue',
  'download',
  'parse',
  'apply',
  'text_encode',
  'denoise',
  'decode',
  'restore',
  'image_encode',
  'upload',
];
const LEAST_SHOWN_S = 0.005;

export function Report({ content }: { content: Content }) {
  const { parameters } = content;
  const avatar = avatars.value?.find((one) => one.id === content.avatar_id);
  return (
    <div class="report">
      <section>
        <h2>{t('form.prompt')}</h2>
        <p class="prompt-text">{content.prompt || t('picture.noPrompt')}</p>
        {content.negative_prompt && (
          <p class="prompt-text muted">
            <span class="label">{t('form.negative')}</span> {content.negative_prompt}
          </p>
        )}
      </section>
      <section>
        <h2>{t('report.settings')}</h2>
        <dl class="facts">
          <Fact name={t('form.seed')} value={String(parameters.seed)} />
          <Fact name={t('form.size')} value={`${parameters.width ?? '–'} × ${parameters.height ?? '–'}`} />
          <Fact name={t('form.steps')} value={parameters.steps === null ? '–' : number(parameters.steps)} />
          <Fact name={t('form.cfg')} value={parameters.cfg === null ? '–' : number(parameters.cfg, 2)} />
          {avatar && <Fact name={t('form.avatar')} value={avatar.name} />}
          <Fact name={t('report.created')} value={moment(content.created_at)} />
        </dl>
      </section>
      {content.loras.length > 0 && <Loras content={content} />}
      {content.timings && <Timings timings={content.timings} />}
      {content.cost && (
        <section>
          <h2>{t('report.cost')}</h2>
          <p>
            {content.cost.usd === null ? t('cost.none') : usd(content.cost.usd)}
            <span class="muted">
              {' '}
              · {duration(content.cost.seconds)}
              {content.cost.gpu ? ` · ${content.cost.gpu}` : ''}
            </span>
          </p>
        </section>
      )}
      {content.model_clean === true && <p class="muted small">✓ {t('report.clean')}</p>}
    </div>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function Loras({ content }: { content: Content }) {
  return (
    <section>
      <h2>{t('nav.loras')}</h2>
      <ul class="lora-report">
        {content.loras.map((used) => (
          <li key={used.lora_model_id}>
            <strong>{used.name}</strong>
            <span class="num">{number(used.scale, 2, 2)}</span>
            <span class="muted small">
              {[
                used.format,
                used.rank ? t('lora.rank', { rank: used.rank }) : '',
                used.modules_matched !== null
                  ? plural('lora.matched', used.modules_matched)
                  : '',
                used.modules_unmatched?.length
                  ? plural('lora.unmatched', used.modules_unmatched.length)
                  : '',
                loras.value?.some((lora) => lora.id === used.lora_model_id)
                  ? ''
                  : t('lora.deleted'),
              ]
                .filter(Boolean)
                .join(' · ')}
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}

export function Timings({ timings }: { timings: Record<string, number> }) {
  const known = PHASES.filter((phase) => (timings[phase] ?? 0) >= LEAST_SHOWN_S);
  const others = Object.keys(timings).filter((phase) => !PHASES.includes(phase));
  const shown = [...known, ...others];
  const total = shown.reduce((sum, phase) => sum + (timings[phase] ?? 0), 0);
  if (!shown.length) return null;
  return (
    <section>
      <h2>
        {t('report.timings')} <span class="num muted">{duration(total)}</span>
      </h2>
      <div class="phase-bar" aria-hidden="true">
        {shown.map((phase) => (
          <span
            key={phase}
            class={`phase-${phase}`}
            style={{ flexGrow: (timings[phase] ?? 0) / total }}
          />
        ))}
      </div>
      <ul class="phase-list">
        {shown.map((phase) => (
          <li key={phase}>
            <i class={`phase-${phase}`} aria-hidden="true" />
            {tMaybe(`phase.${phase}`, phase)}
            <span class="num">{duration(timings[phase] ?? 0)}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}
