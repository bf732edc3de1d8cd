// What is known of a picture: its prompt and settings first; what the machine did is folded.

import { copy } from '../../state/actions';
import { duration, listed, moment, number, plural, t, tMaybe, usd } from '../../i18n';
import { recall, remember } from '../../state/memory';
import { avatars, loras } from '../../state/store';
import type { Content } from '../../server/types';
import { Button } from '../ui';

// In the order in which they happen; neighbours have different tones.
const PHASES = [
  'queue',
  'download',
  'parse',
  'fetch_images',
  'apply',
  'text_encode',
  'encode_image',
  'denoise',
  'upscale',
  'decode',
  'restore',
  'safety',
  'image_encode',
  'upload',
];
const LEAST_SHOWN_S = 0.005;

export function Report({ content, place }: { content: Content; place: number }) {
  const { parameters } = content;
  const picture = content.images[place];
  const avatar = avatars.value?.find((one) => one.id === content.avatar_id);
  const seed = picture?.seed ?? parameters.seed;
  return (
    <div class="report">
      <section>
        <h2>
          {t('form.prompt')}
          {content.prompt && (
            <Button
              icon="copy"
              kind="quiet"
              iconOnly
              onClick={() => void copy(content.prompt, t('told.copiedPrompt'))}
            >
              {t('action.copyPrompt')}
            </Button>
          )}
        </h2>
        <p class="prompt-text">{content.prompt || t('picture.noPrompt')}</p>
        {content.written?.prompt && content.written.prompt !== content.prompt && (
          <p class="prompt-text muted">
            <span class="label">{t('report.written')}</span> {content.written.prompt}
          </p>
        )}
        {content.negative_prompt && (
          <p class="prompt-text muted">
            <span class="label">{t('form.negative')}</span> {content.negative_prompt}
          </p>
        )}
      </section>
      <section>
        <h2>{t('report.settings')}</h2>
        <dl class="facts">
          <div>
            <dt>{t('form.seed')}</dt>
            <dd class="row">
              <span class="num">{seed}</span>
              <Button
                icon="copy"
                kind="quiet"
                iconOnly
                onClick={() => void copy(String(seed), t('told.copiedSeed'))}
              >
                {t('action.copySeed')}
              </Button>
            </dd>
          </div>
          <Fact
            name={t('form.size')}
            value={sizeOf(picture ?? parameters)}
          />
          <Fact name={t('form.steps')} value={parameters.steps === null ? t('report.own') : number(parameters.steps)} />
          <Fact name={t('form.cfg')} value={parameters.cfg === null ? t('report.own') : number(parameters.cfg, 2)} />
          {content.written && content.written.styles.length > 0 && (
            <Fact name={t('field.styles')} value={listed(content.written.styles)} />
          )}
          {avatar && <Fact name={t('form.avatar')} value={avatar.name} />}
          <Fact name={t('report.created')} value={moment(content.created_at)} />
        </dl>
      </section>
      {content.loras.length > 0 && <Loras content={content} />}
      {(content.timings || content.cost) && <Details content={content} />}
    </div>
  );
}

/** Undecided until it is drawn: the model that draws has a size of its own. */
const sizeOf = ({ width, height }: { width: number | null; height: number | null }): string =>
  width === null || height === null ? t('report.ownSize') : `${width} × ${height}`;

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function Loras({ content }: { content: Content }) {
  const isThere = (id: string) => loras.value?.some((lora) => lora.id === id) ?? true;
  return (
    <section>
      <h2>{t('nav.loras')}</h2>
      <ul class="lora-report">
        {content.loras.map((used) => (
          <li key={used.lora_model_id}>
            <strong>{used.name}</strong>
            <span class="num">{number(used.scale, 2, 2)}</span>
            {!isThere(used.lora_model_id) && (
              <span class="muted small">{t('lora.deleted')}</span>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

/** What one picture of the request cost: the whole is shared between its pictures. */
const costOf = (content: Content): string | null => {
  if (!content.cost) return null;
  if (content.cost.usd === null) return t('cost.none');
  const count = Math.max(1, content.parameters.num_images);
  const each = usd(content.cost.usd / count);
  return count > 1 ? t('report.costEach', { each, all: usd(content.cost.usd) }) : each;
};

function Details({ content }: { content: Content }) {
  const words = (used: Content['loras'][number]): string =>
    [
      used.format,
      used.rank ? t('lora.rank', { rank: used.rank }) : '',
      used.modules_matched ? plural('lora.matched', used.modules_matched) : '',
      used.modules_unmatched?.length ? plural('lora.unmatched', used.modules_unmatched.length) : '',
    ]
      .filter(Boolean)
      .join(' · ');
  return (
    <details
      class="details"
      open={recall('details', false)}
      onToggle={(e) => remember('details', e.currentTarget.open)}
    >
      <summary>
        {t('report.details')}
        <span class="muted num">
          {content.timings && duration(totalOf(content.timings))}
          {content.cost?.usd != null && ` · ${costOf(content)}`}
        </span>
      </summary>
      <div class="stack">
        {content.timings && <Timings timings={content.timings} />}
        {content.cost && (
          <section>
            <h2>{t('report.cost')}</h2>
            <p>
              {costOf(content)}
              <span class="muted">
                {' '}
                · {duration(content.cost.seconds)}
                {content.cost.gpu ? ` · ${content.cost.gpu}` : ''}
              </span>
            </p>
          </section>
        )}
        {content.loras.map((used) => (
          <p class="muted small" key={used.lora_model_id}>
            {used.name}: {words(used)}
          </p>
        ))}
        {content.model_clean === true && <p class="muted small">✓ {t('report.clean')}</p>}
      </div>
    </details>
  );
}

const shownPhases = (timings: Record<string, number>): string[] => [
  ...PHASES.filter((phase) => (timings[phase] ?? 0) >= LEAST_SHOWN_S),
  ...Object.keys(timings).filter((phase) => !PHASES.includes(phase)),
];

const totalOf = (timings: Record<string, number>): number =>
  shownPhases(timings).reduce((sum, phase) => sum + (timings[phase] ?? 0), 0);

function Timings({ timings }: { timings: Record<string, number> }) {
  const shown = shownPhases(timings);
  const total = totalOf(timings);
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
            {tMaybe(`phase.${phase}`, t('phase.other'))}
            <span class="num">{duration(timings[phase] ?? 0)}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}
