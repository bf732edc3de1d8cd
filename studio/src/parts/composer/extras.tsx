// What most requests do without: a second, larger pass, and the marks of other tools' prompts.

import { change, draft, type Beyond, type FieldErrors, type Hires, type Whole } from '../../drafting/draft';
import { listed, number, t } from '../../i18n';
import type { Model } from '../../server/types';
import { fieldName } from '../../server/explain';
import { Field, Slider } from '../ui';

const FIRST: Hires = { scale: 2, upscaler: 'latent', strength: 0.7, steps: 0 };
const SCALE = { least: 1.1, most: 4, step: 0.1 };
const STEPS_MOST = 100;

interface Props {
  of: Whole;
  model: Model;
  errors: FieldErrors;
}

export function Extras({ of, model, errors }: Props) {
  const { hires } = of;
  const more = namesOf(of.beyond);
  const isOpen = hires !== null || of.syntax === 'a1111' || more.length > 0;
  return (
    <details class="details extras" open={isOpen || undefined}>
      <summary>{t('extras.title')}</summary>
      <div class="stack">
        {/* A picture that is drawn over has its size already. */}
        {!of.source && (
          <label class="check">
            <input
              type="checkbox"
              checked={hires !== null}
              onChange={(e) => change({ hires: e.currentTarget.checked ? FIRST : null })}
            />
            {t('extras.hires')}
          </label>
        )}
        {errors.hires && <p class="field-error">{errors.hires}</p>}
        {!of.source && hires && <HiresFields hires={hires} of={of} model={model} errors={errors} />}
        <label class="check">
          <input
            type="checkbox"
            checked={of.syntax === 'a1111'}
            onChange={(e) => change({ syntax: e.currentTarget.checked ? 'a1111' : 'weights' })}
          />
          {t('extras.syntax')}
        </label>
        {more.length > 0 && (
          <p class="field-hint">
            {t('extras.beyond', { names: listed(more) })}{' '}
            <button type="button" class="chip" onClick={() => change({ beyond: {} })}>
              {t('extras.takeOut')}
            </button>
          </p>
        )}
      </div>
    </details>
  );
}

/** What a picture brought along that has no field of its own, in words. */
function namesOf({ hires, embeddings, ...figures }: Beyond): string[] {
  return [
    ...Object.entries(figures).map(([name, value]) => `${fieldName(name)} ${number(Number(value), 2)}`),
    ...(embeddings ?? []).map((one) => one.word ?? one.name ?? ''),
    ...Object.keys(hires ?? {}).map((name) => `${fieldName('hires')}: ${fieldName(name)}`),
  ];
}

/** Whether what is wrong with `field` is told here, as the form is now. */
export const isOfExtras = (field: string): boolean =>
  draft.value.hires !== null &&
  draft.value.source === null &&
  /^hires(\.(scale|upscaler|strength|steps))?$/.test(field);

function HiresFields({ hires, of, model, errors }: Props & { hires: Hires }) {
  const set = (changes: Partial<Hires>) => {
    const now = draft.value.hires;
    if (now) change({ hires: { ...now, ...changes } });
  };
  const kept = (name: 'scale' | 'strength' | 'steps') => (value: number) =>
    Number.isFinite(value) && set({ [name]: value });
  const multiple = model.limits.multiple_of;
  const side = (px: number) => number(Math.floor((px * hires.scale) / multiple) * multiple);
  return (
    <>
      <Slider
        label={t('extras.scale')}
        value={hires.scale}
        min={SCALE.least}
        max={SCALE.most}
        step={SCALE.step}
        error={errors['hires.scale']}
        onChange={kept('scale')}
      />
      <p class="field-hint num">{`${side(of.width)} × ${side(of.height)}`}</p>
      <Field label={t('field.upscaler')} error={errors['hires.upscaler']}>
        {(attributes) => (
          <select
            {...attributes}
            value={hires.upscaler}
            onChange={(e) => set({ upscaler: e.currentTarget.value })}
          >
            <option value="latent">{t('extras.latent')}</option>
            <option value="lanczos">Lanczos</option>
            {model.limits.upscalers.map(({ name }) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        )}
      </Field>
      <Slider
        label={t('extras.strength')}
        value={hires.strength}
        min={0}
        max={1}
        step={0.05}
        error={errors['hires.strength']}
        onChange={kept('strength')}
      />
      <Slider
        label={t('extras.steps')}
        value={hires.steps}
        min={0}
        max={STEPS_MOST}
        step={1}
        error={errors['hires.steps']}
        onChange={kept('steps')}
      />
    </>
  );
}
