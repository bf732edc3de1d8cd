// A picture of one's own, chosen as the cover of a LoRA or an avatar.

import { imagesOf } from '../../state/actions';
import { t } from '../../i18n';
import { expanded, readItem } from '../../state/items';
import { contentOf, feed } from '../../state/store';
import { Thumb } from './picture';
import { Button, Dialog, Empty } from '../ui';

const OFFERED = 60;

interface Props {
  /** Only pictures made with this LoRA come first; null: the newest. */
  loraId: string | null;
  onChoose: (imageId: string | null) => void;
  onClose: () => void;
}

export function CoverDialog({ loraId, onChoose, onClose }: Props) {
  const keys = expanded(feed.value ?? []).filter((key) => contentOf(readItem(key).id).value?.images.length);
  const isOf = (key: string) =>
    contentOf(readItem(key).id).value?.loras.some((used) => used.lora_model_id === loraId) ?? false;
  const sorted = loraId ? [...keys.filter(isOf), ...keys.filter((key) => !isOf(key))] : keys;
  const choose = (imageId: string | null) => {
    onChoose(imageId);
    onClose();
  };
  return (
    <Dialog title={t('cover.title')} onClose={onClose} wide>
      {sorted.length ? (
        <div class="thumbs">
          {sorted.slice(0, OFFERED).map((key) => (
            <Thumb key={key} id={key} onOpen={() => choose(imagesOf([key])[0] ?? null)} />
          ))}
        </div>
      ) : (
        <Empty icon="image" title={t('gallery.empty')} />
      )}
      <footer class="row end">
        <Button onClick={() => choose(null)}>{t('cover.none')}</Button>
      </footer>
    </Dialog>
  );
}
