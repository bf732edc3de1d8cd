// The form's part for a picture that is drawn over: which one, and how much of it stays.

import { useState } from 'preact/hooks';
import { change, draft, type FieldErrors, type Whole } from '../../drafting/draft';
import {
  BLUR,
  FILLS,
  lookUp,
  noteUrl,
  sourceFrom,
  strengthOf,
  takePicture,
  urlOf,
  type PictureRef,
  type Source,
  type SourceMode,
} from '../../drafting/source';
import { fieldOf, networksOf } from '../../drafting/guides';
import { explain } from '../../server/explain';
import { asProblem } from '../../server/api';
import type { Model } from '../../server/types';
import { t } from '../../i18n';
import { lazy } from '../../lazy';
import { tell } from '../../state/store';
import { droppedPicture } from '../pictures/picture';
import { Button, Field, Loading, Slider } from '../ui';
import { NumberInput } from '../composer/numberInput';
import { FrameFields } from './frameFields';
import { PictureWays } from './pictureWays';

const Guides = lazy(() => import('./guides').then((found) => found.Guides));
const MaskPainter = lazy(() => import('./maskPainter').then((found) => found.MaskPainter));
const PicturePicker = lazy(() => import('./picturePicker').then((found) => found.PicturePicker));

const BLUR_MAX = 128;
const PADDING_MAX = 512;
const MODES: SourceMode[] = ['whole', 'mask', 'frame'];

/** Draw over `image` from now on; the size follows it. It can be taken back. */
export function useSource(image: PictureRef): void {
  const before = draft.value;
  const kept = before.source;
  // A mask belongs to the picture that it was painted on.
  const source = kept ? { ...kept, image, mask: null } : sourceFrom(image);
  change({ source, width: null, height: null });
  tell(t('source.taken'), { action: { label: t('action.undo'), run: () => change(before) } });
}

/** Send a file there and draw over it; what is wrong with it is told. */
export async function useFile(file: File): Promise<void> {
  try {
    useSource(await takePicture(file, file.name));
  } catch (error) {
    tell(explain(asProblem(error)), { isError: true });
  }
}

const set = (changes: Partial<Source>): void => {
  const now = draft.value.source;
  if (now) change({ source: { ...now, ...changes } });
};

export function SourcePanel({ of, model, errors }: { of: Whole; model: Model; errors: FieldErrors }) {
  const [isSending, setSending] = useState(false);
  const [picks, setPicks] = useState(false);
  const [isOver, setOver] = useState(false);
  const { source } = of;
  const send = async (file: File) => {
    setSending(true);
    await useFile(file);
    setSending(false);
  };
  return (
    <fieldset
      class={`source ${isOver ? 'over' : ''}`}
      onDragOver={(e) => {
        if (!e.dataTransfer || !takes(e.dataTransfer)) return;
        e.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(e) => {
        setOver(false);
        const dragged = e.dataTransfer && droppedPicture(e.dataTransfer);
        const file = [...(e.dataTransfer?.files ?? [])].find((one) => one.type.startsWith('image/'));
        if (!dragged && !file) return;
        // Here it is what is drawn over; anywhere else on the page its settings are taken.
        e.preventDefault();
        if (dragged) {
          noteUrl(dragged.id, dragged.url);
          useSource({ id: dragged.id, width: dragged.width, height: dragged.height });
        } else if (file) void send(file);
      }}
    >
      <legend>{t('source.title')}</legend>
      {isSending ? (
        <Loading label={t('source.sending')} />
      ) : (
        <PictureWays label={t('source.file')} onFile={(file) => void send(file)} onOwn={() => setPicks(true)} />
      )}
      {!source && <p class="field-hint">{t('source.hint')}</p>}
      {errors['image.image_id'] && (
        <p class="field-error" role="alert">
          {errors['image.image_id']}
        </p>
      )}
      {source && <Chosen source={source} errors={errors} />}
      {(networksOf(model).length > 0 || of.guides.length > 0) && <Guides of={of} model={model} errors={errors} />}
      {picks && <PicturePicker onChoose={useSource} onClose={() => setPicks(false)} />}
    </fieldset>
  );
}

const takes = (data: DataTransfer): boolean =>
  data.types.includes('Files') || data.types.includes('application/x-picture');

function Chosen({ source, errors }: { source: Source; errors: FieldErrors }) {
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

/** Whether what is wrong with `field` is told here, as the form is now. */
export function isOfSource(field: string): boolean {
  const { source, guides } = draft.value;
  if (guides.some((_, place) => field.startsWith(fieldOf(guides, place)))) return true;
  if (field === 'image.image_id') return true;
  if (field === 'strength') return source !== null;
  return (field === 'mask' && source?.mode === 'mask') || (field === 'outpaint' && source?.mode === 'frame');
}
