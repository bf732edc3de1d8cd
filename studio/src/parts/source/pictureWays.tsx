// The two ways to a picture: a file, or one of one's own.

import { t } from '../../i18n';
import { Button } from '../ui';

const TYPES = 'image/png,image/jpeg,image/webp,image/avif';

interface Props {
  label: string;
  onFile: (file: File) => void;
  onOwn: () => void;
}

export function PictureWays({ label, onFile, onOwn }: Props) {
  return (
    <div class="row source-ways">
      <label class="button">
        {label}
        <input
          type="file"
          class="unseen"
          accept={TYPES}
          onChange={(e) => {
            const file = e.currentTarget.files?.[0];
            if (file) onFile(file);
            e.currentTarget.value = '';
          }}
        />
      </label>
      <Button icon="gallery" onClick={onOwn}>
        {t('source.own')}
      </Button>
    </div>
  );
}
