// The form's settings: size, steps, cfg, sampler, seed. Used by every view that has pictures made.

import { avatar, change, draft, randomSeed, SEED_MAX, suggested, type FieldErrors, type Whole } from '../../drafting/draft';
import { number, t } from '../../i18n';
import type { Model } from '../../server/types';
import { shapesOf } from './shapes';
import { looked } from '../../state/store';
import { NumberInput } from './numberInput';
import { Button, Field, Slider } from '../ui';

interface Props {
  of: Whole;
  model: Model;
  errors: FieldErrors;
}

export function SizeField({ of, model, errors }: Props) {
  const { limits } = model;
  const side = (name: 'width' | 'height') => (
    <Field label={t(`form.${name}`)} error={errors[name]}>
      {(attributes) => (
        <NumberInput
          {...attributes}
          least={limits.min_side}
          most={limits.max_side}
          stepBy={limits.multiple_of}
          value={of[name]}
          // One alone would leave the other open.
          onChange={(value) => change({ width: of.width, height: of.height, [name]: value ?? NaN })}
        />
      )}
    </Field>
  );
  return (
    <fieldset class="size">
      <legend>{t('form.size')}</legend>
      <div class="shapes">
        {of.source && (
          <button
            type="button"
            class="shape open"
            aria-pressed={draft.value.width === null && draft.value.height === null}
            onClick={() => change({ width: null, height: null })}
          >
            {t('source.size')}
          </button>
        )}
        {shapesOf(model).map((shape) => {
          const scale = 18 / Math.max(shape.width, shape.height);
          const isOpen = of.source !== null && draft.value.width === null;
          const isChosen = !isOpen && of.width === shape.width && of.height === shape.height;
          return (
            <button
              type="button"
              key={shape.name}
              class="shape"
              aria-pressed={isChosen}
              title={`${shape.width} × ${shape.height}`}
              onClick={() => change({ width: shape.width, height: shape.height })}
            >
              <i
                aria-hidden="true"
                style={{ width: `${shape.width * scale}px`, height: `${shape.height * scale}px` }}
              />
              {shape.name}
            </button>
          );
        })}
      </div>
      <div class="sides">
        {side('width')}
        <Button
          icon="swap"
          kind="quiet"
          iconOnly
          onClick={() => change({ width: of.height, height: of.width })}
        >
          {t('form.swap')}
        </Button>
        {side('height')}
      </div>
    </fieldset>
  );
}

export function NumberFields({ of, model, errors }: Props) {
  return (
    <>
      <Slider
        label={t('form.steps')}
        value={of.steps}
        min={model.steps.minimum}
        max={model.steps.maximum}
        step={1}
        error={errors.steps}
        onChange={(steps) => change({ steps })}
      />
      <Slider
        label={t('form.cfg')}
        value={of.cfg}
        min={model.cfg.minimum}
        max={model.cfg.maximum}
        step={0.5}
        error={errors.cfg}
        onChange={(cfg) => change({ cfg })}
      />
    </>
  );
}

/** Every sampler that can be asked for; the model's own stands first, without a name. */
export function SamplerOptions({ model, own, chosen }: { model: Model; own: string; chosen: string | null }) {
  const offered = model.schedulers.filter((name) => name !== 'default');
  // One that the worker no longer offers stays in sight: it will be refused by name.
  const names = chosen && !offered.includes(chosen) ? [chosen, ...offered] : offered;
  return (
    <>
      <option value="">{own}</option>
      {names.map((name) => (
        <option key={name} value={name}>
          {name}
        </option>
      ))}
    </>
  );
}

export function SamplerField({ model, error }: { model: Model; error: string | undefined }) {
  const chosen = draft.value.scheduler;
  if (!model.schedulers.length && chosen === null) return null;
  const advice = suggested.value;
  const avatars = avatar.value?.scheduler;
  return (
    <div class="sampler">
      <Field label={t('field.scheduler')} error={error}>
        {(attributes) => (
          <select
            {...attributes}
            value={chosen ?? ''}
            onChange={(e) => change({ scheduler: e.currentTarget.value || null })}
          >
            <SamplerOptions
              model={model}
              own={avatars ? t('form.samplerAvatars', { name: avatars }) : t('form.samplerOwn')}
              chosen={chosen}
            />
          </select>
        )}
      </Field>
      {advice && (
        <Button kind="quiet" onClick={() => change({ scheduler: advice.scheduler })}>
          {t('form.samplerAdvice', { sampler: advice.scheduler, lora: advice.lora.name })}
        </Button>
      )}
    </div>
  );
}

/** The seed of the picture that is looked at: the lock keeps that one. */
function seedInView(): number | null {
  const now = looked.value;
  return now ? (now.content.images[now.place]?.seed ?? now.content.parameters.seed) : null;
}

export function SeedField({ of, errors }: Props) {
  return (
    <Field
      label={t('form.seed')}
      error={errors.seed}
      hint={of.seedIsLocked ? null : t('form.seedIsRandom')}
    >
      {(attributes) => (
        <div class="seed">
          <NumberInput
            {...attributes}
            least={0}
            most={SEED_MAX}
            placeholder={t('form.random')}
            value={of.seedIsLocked ? of.seed : null}
            onChange={(seed) => change({ seed, seedIsLocked: seed !== null })}
          />
          <Button icon="dice" iconOnly onClick={() => change({ seed: randomSeed(), seedIsLocked: true })}>
            {t('form.newSeed')}
          </Button>
          <Button
            icon={of.seedIsLocked ? 'lock' : 'unlock'}
            iconOnly
            aria-pressed={of.seedIsLocked}
            onClick={() =>
              change(
                of.seedIsLocked
                  ? { seedIsLocked: false, seed: null }
                  : { seedIsLocked: true, seed: seedInView() ?? randomSeed() },
              )
            }
          >
            {t('form.lockSeed')}
          </Button>
        </div>
      )}
    </Field>
  );
}

export function CountField({ of, model, errors }: Props) {
  const counts = Array.from({ length: model.limits.max_images }, (_, place) => place + 1);
  return (
    <Field label={t('form.count')} error={errors.num_images}>
      {(attributes) => (
        <select
          {...attributes}
          value={of.count}
          onChange={(e) => change({ count: Number(e.currentTarget.value) })}
        >
          {counts.map((count) => (
            <option key={count} value={count}>
              {number(count)}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}
