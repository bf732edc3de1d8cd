// The form's part for pictures that hold the drawing, or lend it their look.

import { useState } from 'preact/hooks';
import { change, draft, type FieldErrors, type Whole } from '../../drafting/draft';
import { fieldOf, guideFrom, GUIDES_MAX, networksOf, type Guide, type Network } from '../../drafting/guides';
import { lookUp, takePicture, urlOf, type PictureRef } from '../../drafting/source';
import { asProblem } from '../../server/api';
import { explain } from '../../server/explain';
import type { Model } from '../../server/types';
import { t } from '../../i18n';
import { lazy } from '../../lazy';
import { tell } from '../../state/store';
import { Button, Field, Loading, Slider } from '../ui';
import { PictureWays } from './pictureWays';

const PicturePicker = lazy(() => import('./picturePicker').then((found) => found.PicturePicker));
const SCALE_MOST = 2;

interface Props {
  of: Whole;
  model: Model;
  errors: FieldErrors;
}

/** Shown where the worker has such networks, or one is asked for. */
export function Guides({ of, model, errors }: Props) {
  const [isSending, setSending] = useState(false);
  const [picks, setPicks] = useState(false);
  const networks = networksOf(model);
  const { guides } = of;
  const first = networks.find(({ kind }) => guides.filter((one) => one.kind === kind).length < GUIDES_MAX);
  const add = (image: PictureRef) => {
    if (first) change({ guides: [...draft.value.guides, guideFrom(image, first)] });
  };
  const send = async (file: File) => {
    setSending(true);
    try {
      add(await takePicture(file, file.name));
    } catch (error) {
      tell(explain(asProblem(error)), { isError: true });
    }
    setSending(false);
  };
  return (
    <details class="details guides" open={guides.length > 0 || undefined}>
      <summary>{t('guides.title')}</summary>
      <div class="stack">
        {guides.map((guide, place) => (
          <GuideFields
            key={`${place} ${guide.image.id}`}
            guide={guide}
            field={fieldOf(guides, place)}
            networks={networks}
            errors={errors}
            onChange={(changes) => setAt(place, changes)}
            onRemove={() => change({ guides: draft.value.guides.filter((_, at) => at !== place) })}
          />
        ))}
        {first &&
          (isSending ? (
            <Loading label={t('source.sending')} />
          ) : (
            <PictureWays label={t('guides.file')} onFile={(file) => void send(file)} onOwn={() => setPicks(true)} />
          ))}
        {guides.length === 0 && <p class="field-hint">{t('guides.hint')}</p>}
      </div>
      {picks && <PicturePicker onChoose={add} onClose={() => setPicks(false)} />}
    </details>
  );
}

function setAt(place: number, changes: Partial<Guide>): void {
  change({ guides: draft.value.guides.map((one, at) => (at === place ? { ...one, ...changes } : one)) });
}

interface GuideProps {
  guide: Guide;
  /** As the API names it. */
  field: string;
  networks: Network[];
  errors: FieldErrors;
  onChange: (changes: Partial<Guide>) => void;
  onRemove: () => void;
}

function GuideFields({ guide, field, networks, errors, onChange, onRemove }: GuideProps) {
  const { kind, name, type, image } = guide;
  const gone = () => {
    onRemove();
    tell(t('guides.gone'), { isError: true });
  };
  const url = urlOf(image.id, (found) => onChange({ image: found }), gone);
  const chosen = networks.find((one) => one.kind === kind && one.name === name);
  const key = (one: { kind: string; name: string }) => `${one.kind} ${one.name}`;
  const own = ['scale', 'start', 'end'].map((name) => `${field}.${name}`);
  const error = Object.entries(errors).find(([of]) => of.startsWith(field) && !own.includes(of))?.[1];
  return (
    <div class="guide" role="group" aria-label={`${t(`guides.${kind}`)}: ${name}`}>
      <div class="guide-head">
        {url ? (
          <img src={url} alt={t('guides.picture')} onError={() => void lookUp(image.id, () => {}, gone)} />
        ) : (
          <Loading />
        )}
        <Field label={t('guides.by')} error={error}>
          {(attributes) => (
            <select
              {...attributes}
              value={key(guide)}
              onChange={(e) => {
                const by = networks.find((one) => key(one) === e.currentTarget.value);
                if (by) onChange({ ...guideFrom(image, by), start: guide.start, end: guide.end });
              }}
            >
              {!chosen && <option value={key(guide)}>{name}</option>}
              {networks.map((one) => (
                <option key={key(one)} value={key(one)}>
                  {`${t(`guides.${one.kind}`)}: ${one.name}`}
                </option>
              ))}
            </select>
          )}
        </Field>
        <Button icon="close" kind="quiet" iconOnly onClick={onRemove}>
          {t('guides.remove')}
        </Button>
      </div>
      {chosen && chosen.types.length > 0 && (
        <Field label={t('guides.type')}>
          {(attributes) => (
            <select {...attributes} value={type ?? ''} onChange={(e) => onChange({ type: e.currentTarget.value })}>
              {chosen.types.map((one) => (
                <option key={one} value={one}>
                  {one}
                </option>
              ))}
            </select>
          )}
        </Field>
      )}
      {kind === 'control' && (
        <label class="check">
          <input
            type="checkbox"
            checked={guide.findsEdges}
            onChange={(e) => onChange({ findsEdges: e.currentTarget.checked })}
          />
          {t('guides.edges')}
        </label>
      )}
      <Slider
        label={t('guides.scale')}
        value={guide.scale}
        min={0}
        max={SCALE_MOST}
        step={0.05}
        error={errors[`${field}.scale`]}
        onChange={(scale) => onChange({ scale })}
      />
      <div class="two">
        <Slider
          label={t('guides.start')}
          value={guide.start}
          min={0}
          max={1}
          step={0.05}
          error={errors[`${field}.start`]}
          onChange={(start) => onChange({ start })}
        />
        <Slider
          label={t('guides.end')}
          value={guide.end}
          min={0}
          max={1}
          step={0.05}
          error={errors[`${field}.end`]}
          onChange={(end) => onChange({ end })}
        />
      </div>
    </div>
  );
}
