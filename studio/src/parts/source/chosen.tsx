// The picture that is drawn over, and how much of it stays.

import { useState } from 'preact/hooks';
import { change, draft, type FieldErrors } from '../../drafting/draft';
import { BLUR, FILLS, lookUp, strengthOf, urlOf, type Source, type SourceMode } from '../../drafting/source';
import { t } from '../../i18n';
import { lazy } from '../../lazy';
import { tell } from '../../state/store';
import { Button, Field, Loading, Slider } from '../ui';
import { NumberInput } from '../composer/numberInput';
import { FrameFields } from './frameFields';

const MaskPainter = lazy(() => import('./maskPainter').then((found) => found.MaskPainter));

const BLUR_MAX = 128;
const PADDING_MAX = 512;
const MODES: SourceMode[] = ['whole', 'mask', 'frame'];

const set = (changes: Partial<Source>): void => {
  const now = draft.value.source;
  if (now) change({ source: { ...now, ...changes } });
};

export function Chosen({ source, errors }: { source: Source; errors: FieldErrors }) {
  const { image, mode } = source;
  const gone = () => {
    change({ source: null });
    tell(t('source.gone'), { isError: true });
  };
  const url = urlOf(image.id, (found) => set({ image: found }), gone);
  return (
    <>
      <figure class="source-picture">
        {url ? (
          <img
            src={url}
            alt={t('source.title')}
            width={image.width || undefined}
            height={image.height || undefined}
            onError={() => void lookUp(image.id, () => {}, gone)}
          />
        ) : (
          <Loading />
        )}
        <figcaption>
          <span class="muted small num">{image.width ? `${image.width} × ${image.height}` : ''}</span>
          <Button icon="close" kind="quiet" iconOnly onClick={() => change({ source: null })}>
            {t('source.remove')}
          </Button>
        </figcaption>
      </figure>
      <div class="segments" role="group" aria-label={t('source.mode')}>
        {MODES.map((one) => (
          <button type="button" key={one} aria-pressed={mode === one} onClick={() => set({ mode: one })}>
            {t(`source.mode.${one}`)}
          </button>
        ))}
      </div>
      {mode === 'mask' && url && <MaskFields source={source} url={url} error={errors.mask} />}
      {mode === 'frame' && (
        <FrameFields source={source} url={url} error={errors.outpaint} onChange={(frame) => set({ frame })} />
      )}
      <Slider
        label={t('field.strength')}
        value={strengthOf(source)}
        min={0}
        max={1}
        step={0.05}
        error={errors.strength}
        onChange={(strength) => set({ strength })}
      />
      <p class="field-hint">{t('source.strengthHint')}</p>
      <More source={source} />
    </>
  );
}

function MaskFields({ source, url, error }: { source: Source; url: string; error?: string | undefined }) {
  const [paints, setPaints] = useState(false);
  const { mask } = source;
  const maskUrl = mask ? urlOf(mask.id, (found) => set({ mask: found }), () => set({ mask: null })) : null;
  return (
    <div class="stack">
      <div class="row">
        <Button
          icon="brush"
          aria-invalid={error ? 'true' : undefined}
          aria-describedby={error ? 'mask-error' : undefined}
          onClick={() => setPaints(true)}
        >
          {t(mask ? 'source.paintMore' : 'source.paint')}
        </Button>
        {maskUrl && (
          <img class={`mask-small ${source.maskIsInverted ? 'inverted' : ''}`} src={maskUrl} alt={t('source.mask')} />
        )}
      </div>
      {error && (
        <p id="mask-error" class="field-error" role="alert">
          {error}
        </p>
      )}
      {paints && (
        <MaskPainter
          image={source.image}
          url={url}
          maskUrl={maskUrl}
          isInverted={source.maskIsInverted}
          blur={source.blur}
          onDone={(painted, blur) => set({ mask: painted, blur, maskIsInverted: false })}
          onClose={() => setPaints(false)}
        />
      )}
    </div>
  );
}

/** What most people leave as it is. */
function More({ source }: { source: Source }) {
  const { mode } = source;
  return (
    <details class="details source-more">
      <summary>{t('source.more')}</summary>
      <div class="stack">
        {mode === 'mask' && (
          <Field label={t('source.area')}>
            {(attributes) => (
              <select
                {...attributes}
                value={source.area}
                onChange={(e) => set({ area: e.currentTarget.value as Source['area'] })}
              >
                <option value="whole">{t('source.area.whole')}</option>
                <option value="masked">{t('source.area.masked')}</option>
              </select>
            )}
          </Field>
        )}
        {mode === 'mask' && source.area === 'masked' && (
          <Field label={t('source.padding')}>
            {(attributes) => (
              <NumberInput
                {...attributes}
                least={0}
                most={PADDING_MAX}
                stepBy={8}
                value={source.padding}
                onChange={(padding) => set({ padding: held(padding, PADDING_MAX) })}
              />
            )}
          </Field>
        )}
        {mode !== 'whole' && (
          <>
            <Slider
              label={t('source.blur')}
              value={source.blur}
              min={0}
              max={BLUR_MAX}
              step={1}
              onChange={(blur) => set({ blur: Number.isFinite(blur) ? held(blur, BLUR_MAX) : BLUR })}
            />
            <Field label={t('source.fill')}>
              {(attributes) => (
                <select
                  {...attributes}
                  value={source.fill ?? (mode === 'frame' ? 'surroundings' : 'original')}
                  onChange={(e) => set({ fill: FILLS.find((one) => one === e.currentTarget.value) ?? null })}
                >
                  {FILLS.map((fill) => (
                    <option key={fill} value={fill}>
                      {t(`source.fill.${fill}`)}
                    </option>
                  ))}
                </select>
              )}
            </Field>
          </>
        )}
        {mode === 'mask' && (
          <label class="check">
            <input type="checkbox" checked={source.soft} onChange={(e) => set({ soft: e.currentTarget.checked })} />
            {t('source.soft')}
          </label>
        )}
        <Field label={t('source.fit')}>
          {(attributes) => (
            <select
              {...attributes}
              value={source.fit}
              onChange={(e) => set({ fit: e.currentTarget.value as Source['fit'] })}
            >
              <option value="crop">{t('source.fit.crop')}</option>
              <option value="stretch">{t('source.fit.stretch')}</option>
            </select>
          )}
        </Field>
      </div>
    </details>
  );
}

const held = (value: number | null, most: number): number =>
  Math.min(most, Math.max(0, Math.round(value ?? 0)));
