// One of one's own pictures, drawn here or uploaded, to draw over.

import { useEffect, useState } from 'preact/hooks';
import { api, asProblem, pictureUrl } from '../../server/api';
import { explain } from '../../server/explain';
import { t } from '../../i18n';
import { keep } from '../../state/store';
import { noteUrl, type PictureRef } from '../../drafting/source';
import { Dialog, Empty, Loading } from '../ui';

const OFFERED = 60;

interface Offered extends PictureRef {
  url: string;
  small: string;
  name: string;
}

interface Props {
  onChoose: (image: PictureRef) => void;
  onClose: () => void;
}

/** The newest pictures of both kinds; uploaded ones first, there are few of them. */
async function offered(): Promise<Offered[]> {
  const [drawn, uploaded] = await Promise.all([
    api.contents({ status: 'succeeded', limit: OFFERED }),
    api.images(),
  ]);
  for (const content of drawn.items) keep(content);
  return [
    ...uploaded.items.slice(0, OFFERED / 2).map(({ id, url, width, height }) => ({
      id, url: pictureUrl(url), small: pictureUrl(url), width, height, name: t('source.uploaded'),
    })),
    ...drawn.items.flatMap(({ images, prompt }) =>
      images.map(({ id, url, thumbnail_url, width, height }) => ({
        id, url: pictureUrl(url), small: pictureUrl(thumbnail_url ?? url), width, height,
        name: prompt.slice(0, 300) || t('picture.noPrompt'),
      })),
    ),
  ].slice(0, 2 * OFFERED);
}

export function PicturePicker({ onChoose, onClose }: Props) {
  const [all, setAll] = useState<Offered[] | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    offered().then(setAll, (error) => setProblem(explain(asProblem(error))));
  }, []);
  return (
    <Dialog title={t('source.own')} onClose={onClose} wide>
      {problem && <p class="field-error">{problem}</p>}
      {!all && !problem && <Loading />}
      {all?.length === 0 && <Empty icon="image" title={t('gallery.empty')} />}
      <div class="thumbs">
        {all?.map(({ id, url, small, width, height, name }) => (
          <button
            type="button"
            class="thumb"
            key={id}
            title={name}
            onClick={() => {
              noteUrl(id, url);
              onChoose({ id, width, height });
              onClose();
            }}
          >
            <img src={small} alt={name} loading="lazy" decoding="async" />
          </button>
        ))}
      </div>
    </Dialog>
  );
}
