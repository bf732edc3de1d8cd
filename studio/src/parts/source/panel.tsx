// The form's part for a picture to draw over: which one, and what lies beside it.

import { useState } from 'preact/hooks';
import { change, draft, type FieldErrors, type Whole } from '../../drafting/draft';
import { fieldOf, networksOf } from '../../drafting/guides';
import { noteUrl, sourceFrom, takePicture, type PictureRef } from '../../drafting/source';
import { explain } from '../../server/explain';
import { asProblem } from '../../server/api';
import type { Model } from '../../server/types';
import { t } from '../../i18n';
import { lazy } from '../../lazy';
import { tell } from '../../state/store';
import { droppedPicture } from '../pictures/picture';
import { Loading } from '../ui';
import { PictureWays } from './pictureWays';

const Chosen = lazy(() => import('./chosen').then((found) => found.Chosen));
const Guides = lazy(() => import('./guides').then((found) => found.Guides));
const PicturePicker = lazy(() => import('./picturePicker').then((found) => found.PicturePicker));

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

/** Whether what is wrong with `field` is told here, as the form is now. */
export function isOfSource(field: string): boolean {
  const { source, guides } = draft.value;
  if (guides.some((_, place) => field.startsWith(fieldOf(guides, place)))) return true;
  if (field === 'image.image_id') return true;
  if (field === 'strength') return source !== null;
  return (field === 'mask' && source?.mode === 'mask') || (field === 'outpaint' && source?.mode === 'frame');
}
